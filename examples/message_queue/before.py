import json
import logging
import os

import pika
from flask import request

from examples.shop_common import Invoice, Order, answer, create_app, db, deliver, new_order, price, store_invoice

app = create_app(__name__)
log = logging.getLogger(__name__)


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    db.session.commit()
    publish({"receipt": order.id}, {"invoice": order.id})
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    invoice = db.session.get(Invoice, order_id)
    return answer(order, invoice.shown() if invoice else f"{order.lines_done} of {len(order.lines)} lines")


def send_receipt(order_id):
    order = db.session.get_one(Order, order_id)
    deliver(order, "Thank you for your order")


def make_invoice(order_id):
    order = db.session.get_one(Order, order_id)
    net = 0
    for number, line in enumerate(order.lines, 1):
        net += price(line)
        order.lines_done = number
        db.session.commit()
    store_invoice(order, net)


def open_channel():
    channel = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
    channel.exchange_declare("dead", "fanout", durable=True)
    channel.queue_declare("orders.dead", durable=True)
    channel.queue_bind("orders.dead", "dead")
    channel.queue_declare("orders", durable=True, arguments={"x-dead-letter-exchange": "dead"})
    channel.basic_qos(prefetch_count=1)
    return channel


def publish(*bodies):
    channel = open_channel()
    for body in bodies:
        channel.basic_publish("", "orders", json.dumps(body), pika.BasicProperties(delivery_mode=2))
    channel.connection.close()


def handle(body):
    for what, order_id in body.items():
        {"receipt": send_receipt, "invoice": make_invoice}[what](order_id)


def on_message(channel, method, _properties, body):
    try:
        with app.app_context():
            handle(json.loads(body))
    except Exception:
        log.exception("not done: %s", body)
        channel.basic_nack(method.delivery_tag, requeue=not method.redelivered)
    else:
        channel.basic_ack(method.delivery_tag)


def work():
    channel = open_channel()
    channel.basic_consume("orders", on_message)
    channel.start_consuming()


if __name__ == "__main__":
    work()
