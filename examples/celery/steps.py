"""Task by task: the receipt is a native task already, the invoice still one of Celery's, and one worker runs both."""

from flask import request

from examples.shop_common import Order, answer, create_app, db, deliver, new_order, price, store_invoice
from jobrunner import JobRunner
from jobrunner.compat.celery import Celery

app = create_app(__name__)
jobs = JobRunner(app, session=db.session)               # native tasks: @jobs.task
celery = Celery("shop", jobs=jobs, session=db.session)  # the others: @celery.task


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    send_receipt.enqueue(order.id)
    make_invoice.apply_async_on_commit((order.id,), task_id=f"invoice-{order.id}")
    db.session.commit()
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    return answer(order, celery.AsyncResult(f"invoice-{order_id}").result or "in work")


@jobs.task(max_attempts=2, backoff_base=1)
def send_receipt(order_id: int) -> None:
    order = db.session.get_one(Order, order_id)
    deliver(order, "Thank you for your order")


@celery.task(bind=True, acks_late=True)
def make_invoice(self, order_id):
    order = db.session.get_one(Order, order_id)
    return store_invoice(order, sum(price(line) for line in order.lines))
