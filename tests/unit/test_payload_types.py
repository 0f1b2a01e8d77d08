"""Classes that an application defines travel by the annotation of the parameter."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobrunner import payload
from jobrunner.errors import InvalidPayload
from jobrunner.payload import Parameters
from jobrunner.settings import MAX_PAYLOAD_BYTES as LIMIT


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Shape(enum.Enum):
    POINT = (0, 0)
    LINE = (0, 1)


class Level(enum.IntFlag):
    A = 1
    B = 2


class Odd(enum.Enum):
    NUL = "a\0b"
    PLAIN = "plain"


@dataclasses.dataclass
class Item:
    sku: UUID
    amount: int = 1
    colours: set[Colour] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Order:
    items: list[Item]
    placed: datetime
    parent: Order | None = None


@dataclasses.dataclass
class Derived:
    width: int
    area: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.area = self.width**2


@dataclasses.dataclass
class Doubling:
    value: int

    def __post_init__(self) -> None:
        self.value *= 2


class Point(NamedTuple):
    x: int
    y: int = 0


class Patch(TypedDict):
    name: str
    due: NotRequired[date]


class Address(BaseModel):
    street: str
    since: date = Field(alias="sinceDate")


class Customer(BaseModel):
    id: UUID
    addresses: list[Address]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


UserId = NewType("UserId", int)
Number = TypeVar("Number", bound=int)
# Constants: they are in the names of tests, which are the same in every process of a run.
ONE, ANOTHER = UUID("7d444840-9dc0-41d1-b245-5ffdce74fad2"), UUID("0bd33e5d-82fe-4f39-aeaf-28abb5574f0e")
INSTANT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
AN_ORDER = Order([Item(ONE, 2, {Colour.RED}), Item(ANOTHER)], INSTANT, Order([], INSTANT))
A_CUSTOMER = Customer(id=ONE, addresses=[Address(street="x", sinceDate=date(2026, 1, 1))])


def there_and_back(annotation: Any, value: Any) -> Any:
    def task(value): ...

    task.__annotations__ = {"value": annotation}
    parameters = Parameters(task, "task")
    text = payload.object_text(parameters.bind((value,), {}), LIMIT)
    return parameters.call(json.loads(text))[1]["value"]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Colour, Colour.BLUE),
        (Shape, Shape.LINE),
        (Level, Level.A | Level.B),
        (Odd, Odd.NUL),
        (Item, Item(ONE)),
        (Order, AN_ORDER),
        (list[Order], [AN_ORDER]),
        (Derived, Derived(3)),
        (Point, Point(1)),
        (Patch, {"name": "x", "due": date(2026, 1, 1)}),
        (Patch, {"name": "x"}),
        (Customer, A_CUSTOMER),
        (dict[str, Customer | None], {"a": A_CUSTOMER, "b": None}),
        (Customer | Order, A_CUSTOMER),
        (Customer | Order, AN_ORDER),
        (date | int, date(2026, 1, 1)),
        (datetime | str, datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime | str, "tomorrow"),
        (int | float, 1.0),
        (int | float, 1),
        (bool | int, True),
        (bool | int, 1),
        (Literal["a", 1], 1),
        (Literal[Colour.RED], Colour.RED),
        (tuple[int, str], (1, "x")),
        (tuple[int, ...], (1, 2, 3)),
        (tuple[()], ()),
        (tuple, (1, "x")),
        (frozenset[UUID], frozenset({ONE, ANOTHER})),
        (Sequence[int], [1, 2]),
        (Mapping[str, Point], {"a": Point(1, 2)}),
        (dict[Colour, int], {Colour.RED: 1}),
        (Annotated[date, "meta"], date(2026, 1, 1)),
        (UserId, UserId(3)),
        (Number, 3),
        (Any, {"free": [1, None]}),
        (None, None),
        (bytes, b"\x00\xff"),
        (bytearray, bytearray(b"x")),
        (Path, Path("a/b")),
        (list[bytes], [b"", b"x"]),
        (bytes | str, b"eA=="),
        (bytes | str, "eA=="),
        (Path | str | None, "a"),
        (Path | str | None, Path("a")),
        (dict[str, str] | bytes, {"a": "b"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_come_back_by_annotation(annotation, value):
    """A value of the annotated type comes back equal and of the same type."""
    back = there_and_back(annotation, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value", "path", "words"),
    [
        (Order, Order([Item(ONE), Item("no", 1)], INSTANT), "value.items[1].sku", "expected UUID"),  # type: ignore[arg-type]
        (Item, Item(ONE, "two"), "value.amount", "expected int"),  # type: ignore[arg-type]
        (Item, AN_ORDER, "value", "expected Item"),
        (Doubling, Doubling(2), "value", "would come back different"),
        (datetime | str, "2026-01-01T00:00:00+00:00", "value", "ambiguous"),
        (Patch, {"name": "x", "extra": 1}, "value", "'extra'"),
        (Patch, {}, "value", "'name'"),
        (Colour, "red", "value", "expected Colour"),
        (Literal["a", "b"], "c", "value", "expected one of"),
        (tuple[int, str], (1,), "value", "expected tuple of 2"),
        (list[int], [1, 2, "x"], "value[2]", "expected int"),
        (dict[int, str], {1: "x"}, "value[1]", "key of type int"),
        (User, User(id=1), "value", "database object"),
        (complex, 1j, "value", "of type complex"),
        (bytes, "x", "value", "expected bytes"),
        (Path, "x", "value", "expected Path"),
        (dict[str, str] | bytes, b"x", "value", "ambiguous"),
        (int | None, "x", "value", "expected int | None"),
        (list[Order | None], [None, AN_ORDER, 3], "value[2]", "expected Order | None"),
        (Point, (1, 2), "value", "expected Point"),
        (Customer, {"id": 1}, "value", "expected Customer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_that_do_not_fit_are_refused_in_place(annotation, value, path, words):
    """The message has the path inside the value and what was expected there."""
    with pytest.raises(InvalidPayload) as caught:
        there_and_back(annotation, value)
    assert caught.value.argument == path
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "data", "path"),
    [
        (datetime, "2026-01-01T00:00:00", "value"),
        (datetime, "yesterday", "value"),
        (date, 5, "value"),
        (Order, {"items": [{"sku": "no"}], "placed": "2026-01-01T00:00:00Z"}, "value.items[0].sku"),
        (Order, {"items": []}, "value"),
        (Customer, {"id": str(ONE), "addresses": [{"street": 1}]}, "value.addresses[0].street"),
        (set[int], [1, [2]], "value[1]"),
        (Colour, "green", "value"),
        (bytes, "eA==", "value"),
        (bytes, {"$bytes": "?"}, "value"),
        (bytes, {"$path": "a"}, "value"),
        (Path, {"$path": 1}, "value"),
        (Path, {"$nothing": "a"}, "value"),
        (Shape, "CIRCLE", "value"),
        (int, True, None),
        (float, 3, None),
        (int, 3.0, None),
        (int, "3", "value"),
        (str, 3, "value"),
    ],
)
def test_rows_of_plain_sql_are_checked_when_run(annotation, data, path):
    """Arguments that did not come from our enqueue are decoded by the annotation, or refused with their path."""

    def task(value): ...

    task.__annotations__ = {"value": annotation}
    parameters = Parameters(task, "task")
    if path is None:
        parameters.call({"value": data})
        return
    with pytest.raises(InvalidPayload) as caught:
        parameters.call({"value": data})
    assert caught.value.argument == path


def test_no_value_of_a_row_raises_anything_else():
    """Deep nesting in a row ends in InvalidPayload, not in a RecursionError."""
    data: Any = {"items": [], "placed": "2026-01-01T00:00:00Z"}
    for _ in range(20_000):
        data = {"items": [], "placed": "2026-01-01T00:00:00Z", "parent": data}

    def task(value: Order): ...

    with pytest.raises(InvalidPayload, match="nested too deep"):
        Parameters(task, "task").call({"value": data})


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (datetime(2026, 1, 1), "2026-01-01T00:00:00"),  # noqa: DTZ001  the work is done: no reason to fail the job
        (Point(1, 2), {"x": 1, "y": 2}),
        (Colour.RED, "red"),
        ({3, 1}, [1, 3]),
        (A_CUSTOMER, A_CUSTOMER.model_dump(mode="json", by_alias=True)),
    ],
)
def test_return_values_are_stored_by_what_they_are(value, stored):
    """A return value needs no annotation to be stored."""
    assert json.loads(payload.encode_result(value, LIMIT)) == stored


@pytest.mark.parametrize("value", [b"x", float("nan"), {1: 2}, User(id=1), Loud(), "\0", "\ud800", "x" * 200, object(), [Loud()]])
def test_return_values_that_json_cannot_hold_are_refused(value):
    """Whatever a task returns, the only error is InvalidPayload about the return value."""
    with pytest.raises(InvalidPayload, match="the return value"):
        payload.encode_result(value, 100)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Order, AN_ORDER), (datetime, datetime(2026, 1, 1)), (tuple[int, ...], (1, 2)), (Customer, A_CUSTOMER), (None, None)],  # noqa: DTZ001
)
def test_results_come_back_by_the_return_annotation(annotation, value):
    """`job.result()` gives what the function returned."""
    assert payload.decode_result(annotation, json.loads(payload.encode_result(value, LIMIT))) == value
