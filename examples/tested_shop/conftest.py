import os

import pytest
from shop import create_app, db, outbox

from jobrunner import migrate
from jobrunner.testing import rolled_back


@pytest.fixture(scope="session")
def app():
    app = create_app(os.environ["TEST_DATABASE_URL"])
    migrate.upgrade(os.environ["TEST_DATABASE_URL"])
    with app.app_context():
        db.create_all()
    return app

@pytest.fixture
def jobrunner_transaction(app):
    outbox.clear()
    with rolled_back(app) as connection:
        yield connection

@pytest.fixture
def client(app, jobs_testing):
    return app.test_client()
