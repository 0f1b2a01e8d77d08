import json
import logging
import os

import pika
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass

app = Flask("shop")
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app, model_class=Base)
log = logging.getLogger("shop")
outbox = []  # stands for a mail server

class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]

def channel():
    opened = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
    opened.queue_declare("emails", durable=True, arguments={"x-dead-letter-exchange": "dead"})
    opened.basic_qos(prefetch_count=1)
    return opened

@app.post("/orders/<email>")
def order(email):
    placed = Order(email=email)
    db.session.add(placed)
    db.session.commit()
    channel().basic_publish("", "emails", json.dumps({"order": placed.id}))
    return {"order": placed.id}

def send(body):
    found = db.session.get_one(Order, body["order"])
    if "@" not in found.email:
        raise ValueError("that is no address")
    outbox.append(found.email)

def on_message(opened, method, _properties, body):
    try:
        with app.app_context():
            send(json.loads(body))
    except Exception:
        log.exception("not sent")
        opened.basic_nack(method.delivery_tag, requeue=not method.redelivered)
    else:
        opened.basic_ack(method.delivery_tag)

def work():
    opened = channel()
    opened.basic_consume("emails", on_message)
    opened.start_consuming()

if __name__ == "__main__":
    work()
