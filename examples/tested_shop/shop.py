from datetime import timedelta

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobrunner import JobRunner, Retry, current_job


class Base(DeclarativeBase):
    pass

db = SQLAlchemy(model_class=Base)
jobs = JobRunner(session=db.session)
outbox = []  # stands for a mail server


class User(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    welcomed: Mapped[bool] = mapped_column(default=False)


def deliver(address, text):
    if address.endswith("@down.example"):
        raise ConnectionError("the mail server is down")
    outbox.append((address, text))


@jobs.task(queue="mail", max_attempts=3, backoff="constant", backoff_base=60, backoff_jitter=0)
def send_welcome(user_id: int, language: str = "en") -> str:
    user = db.session.get_one(User, user_id)
    deliver(user.email, {"en": "Welcome!", "fr": "Bienvenue !"}[language])
    user.welcomed = True
    db.session.commit()
    return user.email

@jobs.task(queue="mail")
def remind(user_id: int) -> None:
    user = db.session.get_one(User, user_id)
    if not user.welcomed:
        raise Retry(f"not welcomed yet, asked by job {current_job().id}", delay=3600)
    deliver(user.email, "Still there?")

@jobs.task
async def count_letters(words: list[str]) -> dict[str, int]:
    return {word: len(word) for word in words}


def create_app(database_url):
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    jobs.init_app(app)

    @app.post("/users/<email>")
    def sign_up(email):
        user = User(email=email)
        db.session.add(user)
        db.session.flush()
        send_welcome.enqueue(user.id)
        remind.options(delay=timedelta(days=3)).enqueue(user.id)
        if "@" not in email:
            db.session.rollback()
            return {"error": "that is no address"}, 400
        db.session.commit()
        return {"id": user.id}

    return app
