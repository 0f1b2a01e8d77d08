"""Which functions and classes a row may name: the application's own, and of what it imports nothing."""

from __future__ import annotations

import functools
import operator
import os
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from jobrunner import ConfigurationError, JobRunner, UnknownTask
from jobrunner.allowing import VARIABLE, Allowed, FunctionRefused, main_name
from jobrunner.settings import CALL

SHOP = """
import enum, functools, json, os
from os import system, getcwd
from subprocess import run as execute

def build(number):
    return number

def _private():
    return "private"

def wrapped_by(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner

def hidden_by(function):
    def inner(*args):
        return function(*args)
    return inner

@wrapped_by
def decorated():
    return "decorated"

@hidden_by
def hidden():
    return "hidden"

alias = build
small = lambda: 1
piece = functools.partial(build, 1)

class Shop:
    limit = 1
    @staticmethod
    def opening():
        return "at nine"
    @classmethod
    def make(cls):
        return cls()
    def sell(self):
        return 1
    @property
    def secret(self):
        raise AssertionError("computed")
    def __call__(self):
        return 1
    class Colour(enum.Enum):
        RED = 1

class ShopError(Exception):
    pass

here = Shop()
there = Shop

def __getattr__(name):
    raise AssertionError("computed")
"""


@pytest.fixture
def modules(monkeypatch):
    """Makes modules of the application."""

    def make(name, text=SHOP, file="/app/shop.py"):
        module = ModuleType(name)
        module.__file__ = file
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, file, "exec"), module.__dict__)
        return module

    return make


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    return JobRunner(wakeups=False)


@pytest.fixture
def shop(modules, jobs):
    """A module that has a task."""
    module = modules("shop_here")
    module.sweep = jobs.task(module._private)
    return module


@pytest.fixture
def allowed(jobs):
    return jobs.calls.allowed


@pytest.mark.parametrize("name", ["build", "_private", "decorated", "Shop.opening"])
def test_functions_of_a_module_with_a_task(shop, allowed, name):
    """Whatever is defined there under its own name has a path, and the path leads back to it."""
    function = functools.reduce(getattr, name.split("."), shop)
    path = allowed.path_of(function)
    assert path == f"shop_here:{name}"
    assert allowed.function_at(path) is function


def test_a_task_stands_for_its_function(shop, jobs, allowed):
    """A task, as any object that wraps a function, is called by its function's name."""
    module_task = jobs.task(name="b")(shop.build)
    shop.build = module_task
    assert allowed.path_of(module_task) == "shop_here:build"
    assert allowed.function_at("shop_here:build") is module_task.fn


@pytest.mark.parametrize(
    ("function", "problem", "hint"),
    [
        (lambda shop: shop.small, "is a lambda", "give it a name"),
        (lambda _shop: nested(), "inside another function", "top of a module"),
        (lambda shop: shop.here.sell, "method of an object", "object's id"),
        (lambda shop: shop.Shop.make, "method of an object", "object's id"),
        (lambda shop: shop.Shop, "is a class", "plain data"),
        (lambda shop: shop.here, "__call__", "object's id"),
        (lambda shop: shop.hidden, "inside another function", "top of a module"),
        (lambda shop: shop.piece, "partial", "beside it"),
        (lambda _shop: "shop_here:build", "not callable", "pass a function"),
        (lambda shop: shop.system, "may not run as jobs", "@jobs.task"),
        (lambda _shop: os.getcwd, "may not run as jobs", VARIABLE),
        (lambda _shop: subprocess.run, "may not run as jobs", VARIABLE),
        (lambda _shop: eval, "may not run as jobs", VARIABLE),
        (lambda _shop: open, "may not run as jobs", VARIABLE),
    ],
)
def test_what_cannot_be_called_is_told_why(shop, allowed, function, problem, hint):
    """The refusal names the function, says why, and what to do instead."""
    with pytest.raises(FunctionRefused, match=problem) as caught:
        allowed.path_of(function(shop))
    assert hint in caught.value.hint


def nested():
    def inner():
        """Nobody finds it."""

    return inner


def test_a_function_that_was_replaced(shop, allowed):
    """A function that is not what its module has under its name would not be what the worker runs."""
    old = shop.build
    shop.build = shop.decorated
    with pytest.raises(FunctionRefused, match="something else"):
        allowed.path_of(old)


@pytest.mark.parametrize(
    "path",
    [
        "shop_here:system", "shop_here:getcwd", "shop_here:execute", "shop_here:os.system", "shop_here:json.loads", "shop_here:alias",
        "shop_here:small", "shop_here:piece", "shop_here:Shop", "shop_here:there.opening", "shop_here:Shop.make", "shop_here:here.sell",
        "shop_here:here.secret", "shop_here:Shop.secret", "shop_here:here", "shop_here:sweep.fn", "shop_here:missing", "shop_here:",
        "shop_here:build.__call__", "shop_here:build.__globals__", "shop_here:Shop.__init__", "shop_here:Shop.__class__", "shop_here",
        "os:system", "posix:system", "subprocess:run", "builtins:eval", "builtins:exec", "builtins:__import__", "builtins:open",
        "builtins:getattr", "builtins:type", "jobrunner.migrate:upgrade", "jobrunner.calls:_whole", "antigravity:geohash", ":", "",
        "shop_here:hidden_by.<locals>.inner",
    ],
)  # fmt: skip
def test_a_row_finds_nothing_else(shop, allowed, path):
    """Whoever can insert a row calls what the application has written in a module that it allows, by its own name, and nothing besides."""
    with pytest.raises(FunctionRefused):
        allowed.function_at(path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("function", [pow, divmod, sum, str, sorted, abs])
def test_computing_builtins(allowed, function):
    """Built-in functions that compute and do nothing else need no permission."""
    assert allowed.function_at(allowed.path_of(function)) is function


def test_a_library_function_that_is_a_task_opens_no_library(modules, jobs, allowed):
    """`jobs.task(name=…)(os.remove)` allows that task alone; so with a function of an installed package."""
    library = modules("some_library", "def fetch(): ...\ndef wipe(): ...\n", "/x/lib/python3/site-packages/some_library.py")
    jobs.task(name="remove")(os.path.join)
    jobs.task(name="fetch")(library.fetch)
    for function in (os.path.split, os.remove, library.wipe, library.fetch):
        with pytest.raises(FunctionRefused, match="may not run as jobs"):
            allowed.path_of(function)


def test_an_installed_application_is_one(modules, jobs, allowed):
    """A function that was decorated where it stands opens its module, installed or not."""
    installed = modules("installed_app", "def sweep(): ...\ndef build(): ...\n", "/x/lib/python3/site-packages/installed_app.py")
    installed.sweep = jobs.task(installed.sweep)
    assert allowed.function_at(allowed.path_of(installed.build)) is installed.build


# -- names that are allowed


def test_modules_by_name(jobs, monkeypatch):
    """The argument, the environment, the Flask config and `allow` add up; C functions go by the name that everybody knows."""
    jobs = JobRunner(wakeups=False, allowed_modules=["time"])
    allowed = jobs.calls.allowed
    assert allowed.path_of(time.sleep) == "time:sleep"
    with pytest.raises(FunctionRefused):
        allowed.path_of(operator.mul)
    monkeypatch.setenv(VARIABLE, "operator, math")
    assert allowed.path_of(operator.mul) == "operator:mul"
    assert allowed.function_at("operator:mul") is operator.mul
    assert allowed.function_at("time:sleep") is time.sleep
    with pytest.raises(FunctionRefused):
        allowed.function_at("os:getcwd")
    monkeypatch.delenv(VARIABLE)
    jobs.app = SimpleNamespace(config={VARIABLE: ["os"]})
    assert allowed.function_at("os:getenv") is os.getenv
    with pytest.raises(FunctionRefused):
        allowed.function_at("os:system")  # of another module, which os only shows


def test_what_never_runs(monkeypatch, jobs):
    """`eval` and its like are refused whatever is allowed."""
    monkeypatch.setenv(VARIABLE, "builtins, posix")
    for path in ("builtins:eval", "builtins:exec", "builtins:open"):
        with pytest.raises(FunctionRefused):
            jobs.calls.allowed.function_at(path)


def test_a_module_that_is_named_is_imported_and_one_inside_a_package_is_not(monkeypatch, tmp_path, jobs):
    """The application may name a module that it has not imported; `pkg.*` finds only what it has."""
    package = tmp_path / "jr_package"
    package.mkdir()
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text(f"def run():\n    return {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, "jr_package.one, jr_package.*")
    allowed = jobs.calls.allowed
    assert allowed.function_at("jr_package.one:run")() == "one"
    with pytest.raises(FunctionRefused):
        allowed.function_at("jr_package.two:run")
    assert "jr_package.two" not in sys.modules
    for name in [name for name in sys.modules if name.startswith("jr_package")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["shop reports", "shop-a", "", 5, "shop.", "*"])
def test_a_name_that_is_none(name):
    """A module's name that cannot be one is refused where it is given."""
    with pytest.raises(ConfigurationError, match="no name of a module"):
        Allowed(JobRunner(wakeups=False), [name])


def test_nothing_but_tasks(monkeypatch, shop, jobs):
    """With `none` no function is called that is not a task, and workers do not offer to."""
    assert CALL in jobs.task_names()
    allowed = jobs.calls.allowed
    assert allowed.path_of(shop.build)
    monkeypatch.setenv(VARIABLE, "none")
    for attempt in (lambda: allowed.path_of(shop.build), lambda: allowed.path_of(pow), lambda: allowed.function_at("shop_here:build")):
        with pytest.raises(FunctionRefused, match="is no task"):
            attempt()
    assert CALL not in jobs.task_names()


def test_a_registered_function_is_found_wherever_it_is(jobs):
    """What a decorator has registered runs even when it is defined inside another function; the newest one counts."""
    allowed, first, second = jobs.calls.allowed, nested(), nested()
    assert allowed.register(first) == allowed.register(second) == allowed.path_of(second)
    assert allowed.function_at(allowed.path_of(second)) is second
    with pytest.raises(FunctionRefused, match="inside another function"):
        allowed.path_of(first)


# -- classes


def test_classes_that_may_travel(shop, allowed):
    """Enums and exceptions of an allowed module, by their own names; nothing re-exported."""
    assert allowed.name_of(shop.Shop.Colour) == "shop_here:Shop.Colour"
    assert allowed.find("shop_here:Shop.Colour") is shop.Shop.Colour
    assert allowed.find("shop_here:ShopError") is shop.ShopError
    for name in ("shop_here:there", "shop_here:enum.Enum", "os:PathLike", "shop_here:missing", "json:JSONDecodeError", "nothing", ""):
        assert allowed.find(name) is None
    assert allowed.name_of(subprocess.CalledProcessError) is None


# -- the script that this process runs


@pytest.mark.parametrize(("spec", "file", "name"), [("shop.web", None, "shop.web"), (None, "shop/inner/app.py", "shop.inner.app"), (None, None, None)])
def test_the_name_of_the_script(monkeypatch, tmp_path, spec, file, name):
    """`python -m shop.web` and `python shop/inner/app.py` are the modules that a worker imports by these names."""
    if file:
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        for package in ("shop", "shop/inner"):
            (tmp_path / package / "__init__.py").touch()
        path.touch()
    main = ModuleType("__main__")
    main.__spec__ = None if spec is None else SimpleNamespace(name=spec)  # type: ignore[assignment]
    if file:
        main.__file__ = str(tmp_path / file)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert main_name() == name


# -- the task of our own


def test_the_task_of_our_own_stands_in_no_list(jobs):
    """It is found by its name, and no application can take that name."""
    assert jobs.registry.names() == []
    assert len(jobs.registry) == 0
    assert CALL not in jobs.registry
    assert jobs.registry.get(CALL) is jobs.registry.find(CALL) is jobs.calls.task
    with pytest.raises(UnknownTask):
        jobs.registry.get("jobrunner.other")
    with pytest.raises(ConfigurationError, match="Jobrunner's own"):
        jobs.task(name=CALL)(nested())
