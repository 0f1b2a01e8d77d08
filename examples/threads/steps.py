"""On the way from threads: a share of the calls become jobs already, and what is worth it is a task with a policy of its own."""

import os
import random
from threading import Thread

from flask import request

from examples.shop_common import Invoice, Order, answer, create_app, db, deliver, new_order, price, store_invoice
from jobrunner import JobRunner

app = create_app(__name__)
app.config["SHARE_OF_JOBS"] = float(os.environ.get("SHARE_OF_JOBS", "0.5"))
jobs = JobRunner(app, session=db.session, embedded_worker="threads:2")


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    send_receipt.enqueue(order.id)
    db.session.commit()
    in_background(make_invoice, order.id)
    db.session.commit()
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    invoice = db.session.get(Invoice, order_id)
    return answer(order, invoice.shown() if invoice else "in work")


def in_background(function, *args):
    if random.random() < app.config["SHARE_OF_JOBS"]:      # 0 to 1
        jobs.background(function, *args)
    else:
        Thread(target=function, args=args).start()


@jobs.task(queue="mail", max_attempts=8, time_limit=30)
def send_receipt(order_id: int) -> None:
    order = db.session.get_one(Order, order_id)
    deliver(order, "Thank you for your order")


def make_invoice(order_id):
    with app.app_context():
        order = db.session.get_one(Order, order_id)
        store_invoice(order, sum(price(line) for line in order.lines))
