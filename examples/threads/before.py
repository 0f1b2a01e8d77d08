import logging
import time
from threading import Thread

from flask import request

from examples.shop_common import Invoice, MailServerBusy, Order, answer, create_app, db, deliver, new_order, price, store_invoice

app = create_app(__name__)
log = logging.getLogger(__name__)
lines_done = {}


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    db.session.commit()
    Thread(target=send_receipt, args=(app, order.id)).start()
    Thread(target=make_invoice, args=(app, order.id)).start()
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    invoice = db.session.get(Invoice, order_id)
    return answer(order, invoice.shown() if invoice else f"{lines_done.get(order_id, 0)} of {len(order.lines)} lines")


def send_receipt(app, order_id):
    with app.app_context():
        order = db.session.get_one(Order, order_id)
        for attempt in (1, 2):
            try:
                deliver(order, "Thank you for your order")
            except MailServerBusy:
                log.exception("receipt of order %s, attempt %s", order_id, attempt)
                time.sleep(1)
            else:
                break


def make_invoice(app, order_id):
    with app.app_context():
        order = db.session.get_one(Order, order_id)
        net = 0
        for number, line in enumerate(order.lines, 1):
            net += price(line)
            lines_done[order_id] = number
        store_invoice(order, net)
        del lines_done[order_id]
