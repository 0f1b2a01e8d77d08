from flask import request

from examples.shop_common import MailServerBusy, Order, answer, create_app, db, deliver, new_order, price, store_invoice
from jobrunner.compat.celery import Celery, Task, shared_task
from jobrunner.compat.celery.result import AsyncResult

app = create_app(__name__)
app.config["CELERY"] = {"broker_url": "redis://localhost", "result_backend": "redis://localhost"}
app.config.from_prefixed_env()


class FlaskTask(Task):
    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)


celery_app = Celery(app.name, task_cls=FlaskTask)
celery_app.config_from_object(app.config["CELERY"])
celery_app.set_default()
app.extensions["celery"] = celery_app


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    send_receipt.delay_on_commit(order.id)
    make_invoice.apply_async_on_commit((order.id,), task_id=f"invoice-{order.id}")
    db.session.commit()
    return {"id": order.id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id):
    order = db.get_or_404(Order, order_id)
    invoice = AsyncResult(f"invoice-{order_id}").result or "in work"
    if "current" in invoice:
        invoice = f"{invoice['current']} of {invoice['total']} lines"
    return answer(order, invoice)


@shared_task(bind=True, acks_late=True, max_retries=1)
def send_receipt(self, order_id):
    order = db.session.get_one(Order, order_id)
    try:
        deliver(order, "Thank you for your order")
    except MailServerBusy as error:
        raise self.retry(exc=error, countdown=1) from error


@shared_task(bind=True, acks_late=True)
def make_invoice(self, order_id):
    order = db.session.get_one(Order, order_id)
    net = 0
    for number, line in enumerate(order.lines, 1):
        net += price(line)
        self.update_state(state="PROGRESS", meta={"current": number, "total": len(order.lines)})
    return store_invoice(order, net)
