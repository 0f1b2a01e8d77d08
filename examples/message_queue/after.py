import logging
import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobrunner import JobRunner


class Base(DeclarativeBase):
    pass

app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app, model_class=Base)
jobs = JobRunner(app, session=db.session)
emails = jobs.queue("emails", max_deliveries=2, backoff_base=0)
log = logging.getLogger("shop")
outbox = []  # stands for a mail server

class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]

@app.post("/orders/<email>")
def order(email):
    placed = Order(email=email)
    db.session.add(placed)
    db.session.flush()
    emails.put({"order": placed.id})
    db.session.commit()
    return {"order": placed.id}

def send(body):
    found = db.session.get_one(Order, body["order"])
    if "@" not in found.email:
        raise ValueError("that is no address")
    outbox.append(found.email)

def work(wait=20, rounds=None):
    while rounds is None or (rounds := rounds - 1) >= 0:
        message = emails.get(wait=wait)
        if message is None:
            continue
        try:
            with message, app.app_context():
                send(message.body)
        except Exception:
            log.exception("not sent")

if __name__ == "__main__":
    work()
