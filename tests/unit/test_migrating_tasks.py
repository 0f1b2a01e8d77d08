"""`migrate-check` finds what applications do with tasks: decorators, options, calls, requests, results, workflows."""

from __future__ import annotations

import pytest

from jobrunner.migrating import Rating
from tests.support.scans import found, scan_tree, uses_in

APP = "from celery import Celery\napp = Celery('shop')\n"


@pytest.mark.parametrize(
    "line",
    ["@app.task", "@app.task()", "@app.task(name='a.b')", "@shared_task", "@shared_task(ignore_result=False)", "@celery.shared_task"],
)
def test_every_form_of_the_decorator_is_found(tmp_path, line):
    """With and without parentheses, of the app and shared; the function is a task from then on."""
    text = f"import celery\nfrom celery import Celery, shared_task\napp = Celery('shop')\n{line}\ndef send(): ...\nsend.delay()\n"
    lines = uses_in(tmp_path, text)
    assert any(use.startswith("4 app ") for use in lines)
    assert "6 call delay" in lines


def test_every_option_is_named_with_its_place(tmp_path):
    """Each keyword of the decorator is a use of its own, at its own line and column."""
    report = scan_tree(
        tmp_path,
        {
            "code.py": """
            from celery import shared_task

            @shared_task(bind=True, max_retries=5,
                         autoretry_for=(IOError,), rate_limit='10/m',
                         acks_late=True, of_our_own=1)
            def send(self): ...
            """
        },
    )
    options = {use.what.removeprefix("task option "): (use.line, use.column, use.rule.rating.value) for use in report.uses if "option" in use.what}
    assert options == {
        "bind": (3, 14, "ok"),
        "max_retries": (3, 25, "ok"),
        "autoretry_for": (4, 14, "ok"),
        "rate_limit": (4, 40, "ok"),
        "acks_late": (5, 14, "changed"),
        "of_our_own": (5, 30, "ok"),
    }


def test_options_from_a_dict_are_found_where_the_dict_stands(tmp_path):
    """A dict of this module that is given with ** is looked into; any other is said to be out of sight."""
    text = """
    from celery import shared_task
    OPTIONS = {"rate_limit": "1/s"}

    @shared_task(**OPTIONS)
    def one(): ...

    @shared_task(**somewhere.OPTIONS)
    def two(): ...
    """
    lines = uses_in(tmp_path, text)
    assert "2 task option rate_limit" in lines
    assert "7 task option **" in lines


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_what_is_not_json_is_unsupported(tmp_path, serializer):
    """The value of a serializer decides."""
    report = scan_tree(tmp_path, {"code.py": f"from celery import shared_task\n@shared_task(serializer='{serializer}')\ndef f(): ...\n"})
    assert [(use.what, use.rule.rating) for use in report.uses if "serializer" in use.what] == [
        (f"task option serializer={serializer}", Rating.UNSUPPORTED)
    ]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("send.delay(1)", ["call delay"]),
        ("send.apply_async((1,), countdown=5, queue='mail')", ["call apply_async", "call option countdown", "call option queue"]),
        ("send.apply_async(link=send.s(2))", ["call apply_async", "call option link", "call s"]),
        ("send.apply_async(serializer='pickle')", ["call apply_async", "call option serializer=pickle"]),
        ("send.si(1).set(priority=3)", ["call si", "call set", "call option priority"]),
        ("send.signature((1,)).delay()", ["call signature", "call delay"]),
        ("send.apply(args=(1,)).get()", ["call apply", "call option args", "result get"]),
        ("send.map([1])", ["call map"]),
        ("app.send_task('send', queue='mail')", ["app send_task", "call option queue"]),
        ("app.AsyncResult('x').state", ["app AsyncResult", "result state"]),
        ("app.tasks['send'].delay()", ["app tasks", "call delay"]),
        ("(send.s(1) | send.s(2))()", ["call s", "canvas |", "call s"]),
        ("send.delay(1).get(timeout=3)", ["call delay", "result get"]),
    ],
)
def test_every_way_of_calling_is_found(tmp_path, call, expected):
    """The method and its options, on a task that the module defines."""
    lines = uses_in(tmp_path, f"{APP}@app.task\ndef send(x): ...\n{call}\n")
    assert sorted(use.partition(" ")[2] for use in lines if use.startswith("5 ")) == sorted(expected)


def test_what_a_task_does_with_itself_is_found(tmp_path):
    """`self` of a bound task is the task: its request, retry, state and exceptions."""
    text = """
    from celery import shared_task
    @shared_task(bind=True)
    def send(self, user_id):
        self.update_state(state='PROGRESS', meta={})
        self.request.id, self.request.retries, self.request.get('tenant'), self.request.chord
        try:
            work()
        except OSError as error:
            raise self.retry(exc=error, countdown=2 ** self.request.retries, queue='slow')
        except self.MaxRetriesExceededError:
            self.replace(send.s(1))
        self.max_retries, user_id.delay
    """
    lines = uses_in(tmp_path, text)
    for use in (
        "4 call update_state", "4 call option state", "4 call option meta", "5 request id", "5 request retries", "5 request get",
        "5 request chord", "9 call retry", "9 call option exc", "9 call option countdown", "9 request retries", "9 call option queue",
        "10 call MaxRetriesExceededError", "11 call replace", "12 call max_retries",
    ):  # fmt: skip
        assert use in lines
    assert not any("delay" in use for use in lines)


def test_the_first_parameter_is_the_task_whatever_it_is_called(tmp_path):
    """With bind=True the name does not matter; without it the first parameter is an argument."""
    text = """
    from celery import shared_task
    @shared_task(bind=True)
    def one(task, x):
        task.request.id
    @shared_task
    def two(item):
        item.request.id
    """
    lines = uses_in(tmp_path, text)
    assert "4 request id" in lines
    assert not [use for use in lines if use.startswith("7 ")]


def test_base_classes_of_tasks_are_found(tmp_path):
    """The class, the hooks that it overrides, its options; also of a class that derives from one of the module's own."""
    text = """
    from celery import Celery, Task
    class Base(Task):
        abstract = True
        autoretry_for = (OSError,)
        rate_limit = '1/s'
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            self.request.id
    class Own(Base):
        def after_return(self, *args): ...
        def of_our_own(self): ...
    app = Celery(task_cls='proj:Own')
    @app.task(base=Own)
    def send(): ...
    """
    lines = uses_in(tmp_path, text)
    for use in (
        "2 task class class", "3 task option abstract", "4 task option autoretry_for", "5 task option rate_limit",
        "6 task class __call__", "8 task class on_failure", "9 request id", "10 task class class", "11 task class after_return",
        "13 app option task_cls", "14 task option base",
    ):  # fmt: skip
        assert use in lines
    assert not [use for use in lines if "of_our_own" in use]


def test_subclasses_of_celery_are_found(tmp_path):
    """The class and the hooks that it overrides; its instances are apps."""
    text = """
    from celery import Celery
    class Notify(Celery):
        def init_app(self, app):
            self.conf.update(app.config['CELERY'])
        def send_task(self, name, *args, **kwargs):
            return super().send_task(name, *args, **kwargs)
    notify = Notify()
    @notify.task(name='a')
    def send(): ...
    """
    lines = uses_in(tmp_path, text)
    for use in ("2 app subclass", "4 config update", "5 app send_task", "6 app send_task", "8 app task", "8 task option name"):
        assert use in lines


def test_workflows_are_found(tmp_path):
    """chain, group, chord and their like by name and by attribute, and the operator."""
    text = """
    import celery
    from celery import chain, chord, group, chunks, signature
    from celery.canvas import Signature
    chain(a.s(), b.si())()
    chord(group(a.s(i) for i in range(3)))(b.s())
    celery.chain(a.s()).apply_async()
    signature('a', args=(1,)) | signature('b')
    1 | 2
    """
    lines = uses_in(tmp_path, text)
    for use in ("4 canvas chain", "4 call s?", "4 call si?", "5 canvas chord", "5 canvas group", "6 canvas chain", "6 call apply_async", "7 canvas |", "7 canvas signature"):
        assert use in lines
    assert not [use for use in lines if use.startswith("8 ")]


def test_results_are_followed(tmp_path):
    """What a call gives is a result, through names, annotations and `with`."""
    text = """
    from celery.result import AsyncResult, GroupResult
    result = AsyncResult(task_id)
    if result.ready():
        result.info, result.children, result.revoke(terminate=True)
    def look(found: AsyncResult):
        return found.successful() and found.result
    def maybe(found: "AsyncResult | None"):
        found.traceback
    other = dict(ready=1)
    other.get('x')
    """
    lines = uses_in(tmp_path, text)
    for use in ("2 result AsyncResult", "3 result ready", "4 result info", "4 result children", "4 result revoke", "6 result successful", "6 result result", "8 result traceback"):
        assert use in lines
    assert not [use for use in lines if use.startswith("10 ")]


def test_signals_schedules_control_and_exceptions_are_found(tmp_path):
    """By name, by module and by alias."""
    text = """
    from celery import signals, states
    from celery.signals import task_prerun
    from celery.schedules import crontab, solar
    from celery.exceptions import Retry, SoftTimeLimitExceeded
    import celery.exceptions as ce
    from proj import celery as app
    @task_prerun.connect
    def one(**_): ...
    signals.beat_init.connect(one)
    @app.on_after_configure.connect
    def beat(sender, **_):
        sender.add_periodic_task(crontab(minute='*/5'), one.s(), name='x')
    inspect = app.control.inspect(timeout=1)
    inspect.active(), inspect.memdump()
    app.control.revoke('x', terminate=True, signal='SIGKILL')
    try:
        ...
    except (SoftTimeLimitExceeded, ce.Reject):
        states.SUCCESS
    """
    lines = uses_in(tmp_path, text)
    for use in (
        "7 signal task_prerun", "9 signal beat_init", "10 app on_after_configure", "12 app add_periodic_task", "12 schedule crontab",
        "13 control inspect", "13 control option timeout", "14 control active", "14 control memdump", "15 control revoke", "15 control option terminate",
        "18 exception SoftTimeLimitExceeded", "18 exception Reject", "19 state SUCCESS",
    ):  # fmt: skip
        assert use in lines


def test_what_only_its_name_tells_is_marked(tmp_path):
    """A receiver that cannot be placed is taken for a task where the tree uses Celery, and only there."""
    text = "def go(task, pool):\n    task.delay(1)\n    task.apply_async()\n    pool.submit(1)\n"
    with_celery = scan_tree(tmp_path / "a", {"code.py": text, "tasks.py": "from celery import shared_task\n"})
    assert found(with_celery, "code.py") == ["2 call delay?", "3 call apply_async?"]
    assert found(scan_tree(tmp_path / "b", {"code.py": text})) == []


def test_methods_of_the_same_name_on_other_things_are_no_uses(tmp_path):
    """A pool of processes has apply_async too, and is told apart."""
    text = """
    from celery import shared_task
    from multiprocessing import Pool
    class Animation:
        def delay(self): ...
    Pool(3).apply_async(print)
    Animation().delay()
    "text".format(1)
    """
    lines = uses_in(tmp_path, text)
    assert [use for use in lines if "call" in use] == []
    assert "5 thread Pool.apply_async" in lines


def test_tests_are_found(tmp_path):
    """Fixtures of Celery's pytest plugin, and methods that are patched by their name."""
    text = """
    from celery import shared_task
    import pytest
    def test_it(celery_app, celery_worker, mocker):
        mocker.patch('proj.tasks.send.apply_async')
    @pytest.fixture
    def celery_config():
        return {}
    def helper(celery_worker): ...
    """
    assert [use for use in uses_in(tmp_path, text) if " test " in use] == [
        "3 test celery_app", "3 test celery_worker", "4 test patch", "6 test celery_config",
    ]  # fmt: skip
