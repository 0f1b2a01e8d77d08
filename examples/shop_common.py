"""What all versions of the shop have in common: its tables, its prices, its mail server. How work gets into the background is theirs."""

import os
import time
from decimal import Decimal

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, UniqueConstraint, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VAT = Decimal("0.20")
CENT = Decimal("0.01")
SECONDS_PER_LINE = float(os.environ.get("SHOP_SECONDS_PER_LINE", "1"))


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Order(db.Model):
    __tablename__ = "orders"
    # Checked by the COMMIT, as the last thing that can go wrong: whatever was begun before that was begun for nothing.
    __table_args__ = (UniqueConstraint("reference", deferrable=True, initially="DEFERRED"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str]
    email: Mapped[str]
    lines: Mapped[list[list]] = mapped_column(JSONB)  # article, quantity, price
    lines_done: Mapped[int] = mapped_column(default=0)


class Letter(db.Model):  # stands for an e-mail
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    recipient: Mapped[str]
    text: Mapped[str]
    accepted: Mapped[bool]


class Invoice(db.Model):
    __tablename__ = "invoices"
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    net: Mapped[Decimal]
    vat: Mapped[Decimal]

    def shown(self):
        return {"net": str(self.net), "vat": str(self.vat), "total": str(self.net + self.vat)}


class MailServerBusy(Exception):
    pass


def create_app(name):
    app = Flask(name)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    db.init_app(app)
    app.cli.command("init-db")(db.create_all)
    app.register_error_handler(IntegrityError, refuse)
    return app


def refuse(_error):
    db.session.rollback()
    return {"error": "placed before"}, 409


def new_order(data):
    order = Order(reference=data["reference"], email=data["email"], lines=data["lines"])
    db.session.add(order)
    db.session.flush()  # gives it its id
    return order


def deliver(order, text):
    """Send a letter. The server of busy.example takes it the second time, that of down.example never."""
    domain = order.email.rpartition("@")[2]
    tried = db.session.scalar(select(func.count()).where(Letter.order_id == order.id))
    accepted = domain != "down.example" and (domain != "busy.example" or tried > 0)
    db.session.add(Letter(order_id=order.id, recipient=order.email, text=text, accepted=accepted))
    db.session.commit()
    if not accepted:
        raise MailServerBusy(f"451 {domain} takes no mail now")


def price(line):
    """What a line costs, which takes a while to find out."""
    _article, quantity, each = line
    time.sleep(SECONDS_PER_LINE)
    return quantity * Decimal(each)


def store_invoice(order, net):
    """Write the invoice of an order; a second time does no harm."""
    invoice = db.session.merge(Invoice(order_id=order.id, net=net, vat=(net * VAT).quantize(CENT)))
    db.session.commit()
    return invoice.shown()


def answer(order, invoice):
    sent = db.session.scalar(select(func.count()).where(Letter.order_id == order.id, Letter.accepted))
    return {"id": order.id, "receipt": "sent" if sent else "not sent", "invoice": invoice}
