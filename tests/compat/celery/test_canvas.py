"""Signatures are values that can be completed, linked and sent; what combines tasks says that it is not there."""

# ruff: noqa: ARG005  each use gets the task, whether it needs it or not
from __future__ import annotations

import copy
import json

import pytest

from jobrunner.compat import celery
from jobrunner.compat.celery import Celery, beat, maybe_signature, schedules, signature
from jobrunner.compat.celery.exceptions import Unsupported, UnsupportedWarning
from jobrunner.compat.celery.result import AsyncResult, GroupResult


@pytest.fixture
def eager():
    """An app without a database."""
    return Celery("shop", task_always_eager=True)


@pytest.fixture
def add(eager):
    """A task of two numbers."""

    @eager.task(name="add")
    def add(a, b=0):
        return a - b

    return add


def test_what_is_passed_on_comes_before_what_is_there(add):
    """`s` takes it as its first argument, `si` takes nothing."""
    assert add.s(2).delay(5).get() == 3
    assert add.si(2).delay(5).get() == 2
    assert add.s(b=1).clone((9,)).apply_async().get() == 8
    assert add.signature((9,), {"b": 4}, countdown=3).options == {"countdown": 3}
    assert add.s(5)(b=1) == 4


def test_a_signature_is_a_dict_of_celerys_shape(add):
    """It survives JSON, copies and a message of another code base."""
    one = add.s(1, b=2).set(queue="slow", countdown=1)
    assert dict(one) == {
        "task": "add", "args": (1,), "kwargs": {"b": 2}, "options": {"queue": "slow", "countdown": 1}, "subtask_type": None, "immutable": False,
    }  # fmt: skip
    back = signature(json.loads(json.dumps(one)))
    assert (back.name, tuple(back.args), back.kwargs, back.options) == ("add", (1,), {"b": 2}, {"queue": "slow", "countdown": 1})
    for other in (copy.copy(one), copy.deepcopy(one), one.clone(), maybe_signature(dict(one))):
        assert other == one
        other.set(queue="other")
        assert one.options["queue"] == "slow"
    assert maybe_signature(None) is None
    assert repr(one) == "add(1, b=2)"


def test_links_are_added_once(add):
    """`link` gives the callback, `on_error` the signature itself."""
    one, two = add.s(1), add.s(2)
    assert one.link(two) is two
    assert one.link(two) is two
    assert one.on_error(two) is one
    assert (one.options["link"], one.options["link_error"]) == ([two], [two])


def test_a_frozen_signature_has_its_id(add):
    """The id is known before it is sent, and used then."""
    one = add.s(1)
    assert one.id is None
    result = one.freeze()
    assert one.id == result.id == one.delay().id


@pytest.mark.parametrize("name", ["chain", "group", "chord", "chunks", "xmap", "xstarmap"])
def test_workflows_can_be_imported_and_say_at_the_call_that_they_are_not_there(name, add):
    """Never silence: the error names the part, and what to do meanwhile."""
    part = getattr(celery, name)
    with pytest.raises(Unsupported, match=rf"does not support {name}: .*link="):
        part(add.s(1), add.s(2))
    with pytest.raises(NotImplementedError):
        part.from_dict({})


@pytest.mark.parametrize("use", [
    lambda add: add.s(1) | add.s(2), lambda add: add.map([1]), lambda add: add.starmap([(1,)]), lambda add: add.chunks([1], 2),
    lambda add: add.replace(add.s()), lambda add: add.add_to_chord(add.s()), lambda add: GroupResult("x"), lambda add: GroupResult.restore("x"),
    lambda add: signature({"task": "celery.chain", "subtask_type": "chain"}), lambda add: add.app.add_periodic_task(1.0, add.s()),
    lambda add: add.app.worker_main(["worker"]), lambda add: add.app.connection(), lambda add: add.app.control.pool_grow(1),
    lambda add: add.app.control.inspect().memdump(), lambda add: add.app.task(pydantic=True)(lambda: None).name, lambda add: Celery(loader="x"),
    lambda add: schedules.solar("sunset", 1, 2), lambda add: beat.PersistentScheduler(add.app), lambda add: beat.ScheduleEntry(),
    lambda add: type("Ours", (beat.Scheduler,), {})(app=add.app), lambda add: AsyncResult("x").collect(), lambda add: AsyncResult("x").get_leaf(),
    lambda add: AsyncResult("x").iterdeps(), lambda add: AsyncResult("x").graph, lambda add: add.app.config_from_cmdline(["-A", "x"]),
])  # fmt: skip
def test_whatever_is_not_there_says_so(add, use):
    """Each part of Celery's interface that is left out raises Unsupported."""
    with pytest.raises(Unsupported):
        use(add)


def test_a_schedule_may_stand_in_a_configuration():
    """It is kept and compared, warns that nothing runs by it, and refuses to say when it is due."""
    with pytest.warns(UnsupportedWarning, match="keep `celery beat`"):
        one = schedules.crontab(minute="*/5")
    with pytest.warns(UnsupportedWarning, match="keep `celery beat`"):
        assert one == schedules.crontab(minute="*/5")
    with pytest.raises(Unsupported):
        one.is_due(None)
