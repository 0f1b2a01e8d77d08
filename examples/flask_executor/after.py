from flask import request

from examples.shop_common import Order, answer, create_app, db, deliver, new_order, price, store_invoice
from jobrunner.compat.flask_executor import Executor

app = create_app(__name__)
app.config["EXECUTOR_TYPE"] = "jobs"
app.config["EXECUTOR_OPTIONS"] = {"max_attempts": 2, "backoff_base": 1}
executor = Executor(app)


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
    deliver(order, "Thank you for your order")


def make_invoice(order_id):
    order = db.session.get_one(Order, order_id)
    return store_invoice(order, sum(price(line) for line in order.lines))
