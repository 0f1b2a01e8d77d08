import logging

from flask import request

from examples.shop_common import Invoice, Order, answer, create_app, db, deliver, new_order, price, store_invoice
from jobrunner import JobRunner

app = create_app(__name__)
jobs = JobRunner(app, session=db.session)
queue = jobs.queue("orders", max_deliveries=2, backoff_base=1)
log = logging.getLogger(__name__)


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    queue.put_many([{"receipt": order.id}, {"invoice": order.id}])
    db.session.commit()
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


def handle(body):
    for what, order_id in body.items():
        {"receipt": send_receipt, "invoice": make_invoice}[what](order_id)


def work():
    for message in queue.consume(lease=None):
        try:
            with message, app.app_context():
                handle(message.body)
        except Exception:
            log.exception("not done: %s", message.body)


if __name__ == "__main__":
    work()
