"""What a call needs of the request is named, and goes along with the job."""

from flask import g, request

from examples.shop_common import Order, create_app, db, deliver, new_order
from jobrunner.compat.flask_executor import Executor

app = create_app(__name__)
app.config["EXECUTOR_TYPE"] = "jobs"
app.config["EXECUTOR_CAPTURE"] = ["g.tenant_id", "request.path", "request.headers.X-Request-ID", "current_user.id"]
executor = Executor(app)


@app.before_request
def find_tenant():
    g.tenant_id = request.host.partition(".")[0]


@app.post("/orders")
def place_order():
    order = new_order(request.json)
    db.session.commit()
    executor.submit(send_receipt, order.id)
    return {"id": order.id}, 202


def send_receipt(order_id):
    order = db.session.get_one(Order, order_id)
    deliver(order, f"{g.tenant_id} thanks you for {g.captured['request.headers.X-Request-ID']} at {g.captured['request.path']}")
