import logging
import time

from flask import request
from flask_executor import Executor

from examples.shop_common import MailServerBusy, Order, answer, create_app, db, deliver, new_order, price, store_invoice

app = create_app(__name__)
app.config["EXECUTOR_MAX_WORKERS"] = 4
executor = Executor(app)
log = logging.getLogger(__name__)


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    db.session.commit()
    executor.submit(send_receipt, order.id)
    executor.submit_stored(f"invoice-{order.id}", make_invoice, order.id)
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    key = f"invoice-{order_id}"
    return answer(order, executor.futures.result(key) if executor.futures.done(key) else "in work")


def send_receipt(order_id):
    order = db.session.get_one(Order, order_id)
    for attempt in (1, 2):
        try:
            deliver(order, "Thank you for your order")
        except MailServerBusy:
            log.exception("receipt of order %s, attempt %s", order_id, attempt)
            time.sleep(1)
        else:
            break


def make_invoice(order_id):
    order = db.session.get_one(Order, order_id)
    return store_invoice(order, sum(price(line) for line in order.lines))
