"""`migrate-check` follows names: aliases, relative imports, re-exports, factories, attributes and extensions, across the modules of a tree."""

from __future__ import annotations

import pytest

from tests.support.scans import found, scan_tree, uses_in

DEFINES = "from celery import Celery\nqueue = Celery('shop')\n"
USES = "@queue.task(rate_limit='1/s')\ndef send(): ...\nsend.delay()\n"


@pytest.mark.parametrize(
    "line",
    [
        "from celery import Celery",
        "from celery import Celery as C; Celery = C",
        "from celery.app import Celery",
        "from celery.app.base import Celery",
        "from celery import *",
        "try:\n    from celery import Celery\nexcept ImportError:\n    Celery = None",
        "import celery; Celery = celery.Celery",
        "import celery as c; Celery = c.Celery",
        "import celery.app.base; Celery = celery.app.base.Celery",
        "if True:\n    from celery import Celery",
    ],
)
def test_every_form_of_the_import_is_followed(tmp_path, line):
    """Whatever way Celery is imported, its instances are apps."""
    assert any(use.endswith("task option rate_limit") for use in uses_in(tmp_path, f"{line}\nqueue = Celery()\n{USES}"))


@pytest.mark.parametrize(
    ("files", "user"),
    [
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"from .work import queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"from shop.work import queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"from shop import work\nqueue = work.queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"import shop.work\nqueue = shop.work.queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"import shop.work as w\nqueue = w.queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "from .work import queue\n", "shop/work.py": DEFINES, "shop/a/__init__.py": "", "shop/a/use.py": f"from .. import queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/hub.py": "from .work import queue as q\n", "shop/use.py": f"from .hub import q as queue\n{USES}"}, "use.py"),
        ({"shop/__init__.py": "", "shop/work.py": DEFINES, "shop/use.py": f"from .work import *\n{USES}"}, "use.py"),
        ({"work.py": DEFINES, "use.py": f"from work import queue\n{USES}"}, "use.py"),
        ({"src/shop/__init__.py": "", "src/shop/work.py": DEFINES, "src/shop/use.py": f"from shop.work import queue\n{USES}"}, "use.py"),
        ({"src/work/__init__.py": DEFINES, "src/use.py": f"from work import queue\n{USES}"}, "use.py"),
    ],
)
def test_an_app_is_followed_into_other_modules(tmp_path, files, user):
    """By relative and absolute imports, through packages, modules that only hand it on, stars, and below a directory src."""
    lines = found(scan_tree(tmp_path, files), user)
    assert any(use.endswith("task option rate_limit") for use in lines), lines
    assert any(use.endswith("call delay") for use in lines), lines


def test_tasks_are_followed_into_other_modules(tmp_path):
    """A task is one where it is imported, also through a function-level import."""
    report = scan_tree(
        tmp_path,
        {
            "shop/__init__.py": "",
            "shop/tasks.py": "from celery import shared_task\n@shared_task\ndef send(): ...\ndef plain(): ...\n",
            "shop/views.py": """
            from shop import tasks
            def post():
                from .tasks import send, plain
                send.s(1).delay()
                tasks.send.retry
                plain.s(1)
            """,
        },
    )
    assert found(report, "views.py") == ["4 call s", "4 call delay", "5 call retry"]


@pytest.mark.parametrize(
    "text",
    [
        "def make(app):\n    c = Celery(app.name)\n    return c\nqueue = make(app)\n",
        "def make(app):\n    return Celery(app.name)\nqueue = make(app)\n",
        "queue = None\ndef make(app):\n    global queue\n    queue = Celery(app.name)\n",
        "class Ext:\n    def init_app(self, app):\n        self.c = Celery(app.name)\n    def go(self):\n        queue = self.c\nqueue = Ext().c\n",
        "queue = Celery('a') if x else None\n",
        "queue = existing or Celery('a')\n",
        "queue: Celery = build()\n",
        "queue = current.extensions['celery']\n",
        "queue = current.extensions.get('celery')\n",
        "queue = LocalProxy(lambda: current.extensions['celery'])\n",
        "from celery import current_app as queue\n",
        "with Celery('a') as queue:\n    pass\n",
        "queue, other = Celery('a'), 1\n",
        "class Own(Celery):\n    pass\nqueue = Own('a')\n",
        "from company.queueing import NotifyCelery\nqueue = NotifyCelery()\n",
        "from company.queueing import make_celery\nqueue = make_celery(app)\n",
        "from company.queueing import celery_app as queue\n",
        "queue = (c := Celery('a'))\n",
    ],
)
def test_an_app_is_found_however_it_is_made(tmp_path, text):
    """Factories, globals, attributes, annotations, extensions, proxies, subclasses, and packages that are not there."""
    lines = uses_in(tmp_path, f"from celery import Celery\n{text}{USES}")
    assert any(use.endswith("task option rate_limit") for use in lines), lines


def test_a_factory_of_another_module_is_followed(tmp_path):
    """`celery = make_celery(app)`, where the function is in another module of the tree."""
    files = {
        "shop/__init__.py": "",
        "shop/factory.py": "from celery import Celery\ndef build(app):\n    made = Celery(app.name)\n    made.conf.update(app.config)\n    return made\n",
        "shop/use.py": f"from shop.factory import build\nqueue = build(app)\n{USES}",
    }
    lines = found(scan_tree(tmp_path, files), "use.py")
    assert [use.partition(" ")[2] for use in lines] == ["app task", "task option rate_limit", "call delay"]


def test_decorators_of_the_tree_are_looked_through(tmp_path):
    """One that returns the app's, with and without arguments, or a function that makes the task; one that only wraps makes none."""
    files = {
        "shop/__init__.py": "",
        "shop/jobs.py": """
        from celery import Celery
        app = Celery('shop')
        def job(*args, **options):
            return app.task(*args, bind=True, **options)
        def wrapping(name):
            def wrapper(function):
                made = app.task(function)
                return made
            return wrapper
        def plain(function):
            def inner(*args):
                return function(*args)
            return inner
        """,
        "shop/use.py": """
        from shop.jobs import job, plain, wrapping
        @job
        def one(self): self.request.id
        @job('x', queue='low')
        def two(self): self.request.id
        @wrapping('x')
        def three(): ...
        @plain
        def four(self): self.request.id
        three.s(1), four.s(1), one.si()
        """,
        "shop/quiet.py": "from shop.jobs import job\n@job\ndef five(self): self.request.id\n",
    }
    assert found(scan_tree(tmp_path, files), "quiet.py") == ["3 request id"]
    assert found(scan_tree(tmp_path, files), "use.py") == ["3 request id", "5 request id", "10 call s", "10 call si"]


def test_parameters_are_placed(tmp_path):
    """By their annotation, by the event that calls the function, and by the name that everybody gives an app."""
    text = """
    from celery import Celery, Task
    def one(queue: Celery): queue.control.purge()
    def two(queue: "Celery"): queue.control.purge()
    def three(task: Task): task.request.id
    def init_celery(app, celery): celery.conf.update(app.config)
    queue = Celery()
    @queue.on_after_finalize.connect
    def four(sender, **_): sender.conf.timezone
    def five(sender): sender.conf.timezone
    """
    lines = uses_in(tmp_path, text)
    for use in ("2 control purge", "3 control purge", "4 request id", "5 config update", "8 config timezone"):
        assert use in lines
    assert not [use for use in lines if use.startswith("9 ")]


def test_code_whose_import_has_been_changed_is_looked_at_in_the_same_way(tmp_path):
    """What has nothing in its place is found after the change as before it; the changed import itself is no use any more."""
    text = """
    from jobrunner.compat.celery import Celery, chord, shared_task
    from jobrunner.compat.celery.result import AsyncResult
    from jobrunner.compat import celery
    from jobrunner.compat.flask_executor import Executor
    from jobrunner import JobRunner
    app = Celery()
    @app.task(rate_limit='1/s')
    def send(): ...
    chord([send.s()])(send.s())
    """
    lines = uses_in(tmp_path, text)
    assert [use for use in lines if "import" in use] == ["1 import celery.chord"]
    assert "7 task option rate_limit" in lines
    assert "9 canvas chord" in lines


def test_a_name_is_looked_up_where_python_would(tmp_path):
    """A local name hides one of the module; the body of a class is not seen from its methods."""
    text = """
    from celery import Celery
    queue = Celery()
    def local():
        queue = object()
        queue.control.purge()
    class Holder:
        inner = Celery()
        inner.control.purge()
        def method(self):
            inner.control.purge()
    """
    assert [use for use in uses_in(tmp_path, text) if "control" in use] == ["8 control purge"]


def test_circles_come_to_an_end(tmp_path):
    """Modules that import each other, names that are bound to themselves, functions that return themselves."""
    files = {
        "shop/__init__.py": "from .a import x\nfrom .b import y\n",
        "shop/a.py": "from .b import y as x\nfrom shop import y\nx.delay()\n",
        "shop/b.py": "from .a import x as y\nfrom celery import shared_task\nz = z.y\ndef f():\n    return f()\ng = f()\ng.delay()\ny.delay()\n",
    }
    assert "7 call delay?" in found(scan_tree(tmp_path, files), "b.py")


def test_a_module_of_the_tree_does_not_hide_the_real_package(tmp_path):
    """`proj/celery.py`, where nearly everybody puts the app, imports Celery and not itself."""
    files = {
        "proj/__init__.py": "from .celery import app as celery_app\n",
        "proj/celery.py": "from celery import Celery\napp = Celery('proj')\n@app.task(rate_limit='1/s')\ndef debug(): ...\n",
        "proj/use.py": "from proj import celery_app\ncelery_app.control.purge()\n",
    }
    report = scan_tree(tmp_path, files)
    assert "3 task option rate_limit" in found(report, "celery.py")
    assert "2 control purge" in found(report, "use.py")
