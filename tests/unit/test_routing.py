"""Where several databases and the queues in them come from, and what is refused."""

from __future__ import annotations

import json

import pytest

from jobrunner.errors import ConfigurationError
from jobrunner.routing import ONE_DATABASE, find_routing, make_routing
from jobrunner.settings import parse_dsn

MAIL, REPORTS = "postgresql://app:secret@one:5432/mail", "postgresql://app:secret@two/reports"
DATABASES = {"mail": MAIL, "reports": REPORTS}
ROUTES = {"mail": "mail", "newsletter": "mail", "monthly": "reports"}


def environment(databases=None, routes=None, **more):
    """Variables as a shell would have them."""
    given = {"JOBRUNNER_DATABASES": databases, "JOBRUNNER_ROUTES": routes}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items() if value is not None} | more


def test_the_environment_and_the_config_say_the_same():
    """A mapping in a Flask config, its JSON there, and JSON in the environment mean the same."""
    config = {"JOBRUNNER_DATABASES": DATABASES, "JOBRUNNER_ROUTES": ROUTES}
    found = find_routing(config, {})
    assert found == find_routing({}, environment(DATABASES, ROUTES))
    assert {name: found.name_of(name) for name in ("mail", "newsletter", "monthly", "default", "other")} == {
        "mail": "mail", "newsletter": "mail", "monthly": "reports", "default": "default", "other": "default",
    }  # fmt: skip
    assert find_routing({}, found.environment()) == found
    assert (found.dsn_of("mail").url, found.dsn_of("mail").origin) == (MAIL, "JOBRUNNER_DATABASES['mail']")


def test_nothing_configured_is_one_database():
    """Without both settings, or with empty ones, everything is as with one database."""
    assert find_routing({}, {}) is ONE_DATABASE
    assert find_routing({"JOBRUNNER_DATABASES": {}}, {"JOBRUNNER_ROUTES": ""}) is ONE_DATABASE
    assert ONE_DATABASE.environment() == {}


def test_one_variable_points_an_application_elsewhere():
    """JOBRUNNER_DSN in the environment goes before the databases of a Flask config: a staging host must not write into production's."""
    config = {"JOBRUNNER_DATABASES": DATABASES, "JOBRUNNER_ROUTES": ROUTES}
    assert find_routing(config, {"JOBRUNNER_DSN": "postgresql://staging/app"}) is ONE_DATABASE
    beside = find_routing(
        config, environment({"mail": "postgresql://staging/mail"}, {"mail": "mail"}, JOBRUNNER_DSN="postgresql://staging/app")
    )
    assert sorted(beside.databases) == ["mail"]
    assert beside.name_of("monthly") == "default"


@pytest.mark.parametrize(
    ("databases", "routes", "words"),
    [
        ("nonsense secret", None, ["JOBRUNNER_DATABASES is no JSON object", 'such as {"mail"']),
        ("[1]", None, ["JOBRUNNER_DATABASES is no JSON object"]),
        ('{"mail": 5}', None, ["JOBRUNNER_DATABASES is no JSON object"]),
        (f'{{"mail": "{MAIL}", "mail": "{REPORTS}"}}', None, ["without repeated names"]),
        ({"default": MAIL}, None, ["'default'", "JOBRUNNER_DSN"]),
        ({"of mail": MAIL}, None, ["'of mail'", "letters, digits"]),
        ({"mail": "mysql://app:secret@one/mail"}, None, ["JOBRUNNER_DATABASES['mail']", "'mysql'"]),
        ({"mail": MAIL, "post": "postgres://other@one/mail"}, None, ["'mail' and 'post' are the same one", "JOBRUNNER_ROUTES"]),
        (DATABASES, {"mail": "male"}, ["queue 'mail'", "'male'", "mail, reports"]),
        (None, {"mail": "mail"}, ["queue 'mail'", "set JOBRUNNER_DATABASES"]),
        (DATABASES, "{", ["JOBRUNNER_ROUTES is no JSON object", "queue to name of a database"]),
    ],
)
def test_what_is_wrong_is_refused(databases, routes, words):
    """The message names the setting and what is wrong with it, the hint what to write; a password is in neither."""
    with pytest.raises(ConfigurationError) as caught:
        find_routing({}, environment(databases, routes))
    said = f"{caught.value} {caught.value.hint}"
    assert all(word in said for word in words), said
    assert "secret" not in said


def test_the_default_database_has_no_second_name():
    """A named database at the address of the default one is refused: its jobs would have two homes."""
    routing = make_routing(DATABASES, ROUTES)
    routing.check_apart(parse_dsn("postgresql://app@one/app", "JOBRUNNER_DSN"))
    routing.check_apart(None)
    with pytest.raises(ConfigurationError, match="'default' and 'mail' are the same one"):
        routing.check_apart(parse_dsn("host=one dbname=mail user=other", "JOBRUNNER_DSN"))


def test_an_unknown_name_is_answered_with_the_known_ones():
    """A name that is not there is refused with those that are."""
    with pytest.raises(ConfigurationError, match="there is no database 'male'") as caught:
        make_routing(DATABASES, ROUTES).dsn_of("male")
    assert "mail, reports" in caught.value.hint
