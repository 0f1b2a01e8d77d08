"""Owns which functions, enums and exceptions may be named in a row, and the way from a name to the object.

It must not import a module because a row names it, nor look an attribute up in anything but modules and classes: of what a row names
only that is found which the application has defined itself, in a module that it allows.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from jobrunner.errors import ConfigurationError, EnqueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobrunner.tasks import Registry

VARIABLE = "JOBRUNNER_ALLOWED_MODULES"
NOBODY = "none"  # in place of names: no function that is not a task runs
_INSIDE = ".*"  # at the end of a name: all modules of that package which the application has imported
_INNER = "<locals>"  # in the qualified name of what is defined inside a function
_BUILTINS = "builtins"
_INSTALLED = {"site-packages", "dist-packages"}  # where libraries are, and applications that are installed as packages
# They compute and do nothing else. `eval`, `exec`, `open`, `getattr` and the like never run, whatever is allowed.
_COMPUTING = (
    abs, all, any, ascii, bin, bool, bytes, chr, complex, dict, divmod, float, frozenset, hash, hex, id, int, len, list, max, min, oct, ord,
    pow, repr, round, set, sorted, str, sum, tuple,
)  # fmt: skip
_NOBODYS_OWN = {*sys.stdlib_module_names, "jobrunner"}
_HOW = f"decorate one of its functions with @jobs.task, or name the module in {VARIABLE} (of the environment or the Flask config)"


class FunctionRefused(EnqueueError):
    """A function cannot run as a job; `function` is its name as far as it has one."""

    def __init__(self, function: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{function} {problem}", hint=hint)
        self.function = function


class Application(Protocol):
    """What is to be known of the JobRunner."""

    @property
    def registry(self) -> Registry:
        """Its tasks: the modules that have them are allowed."""

    @property
    def app(self) -> Any:
        """The Flask app, or None."""


class Allowed:
    """The functions and classes of one application that may be named in rows. Thread-safe.

    Args:
        application: whose they are.
        names: modules that are allowed beside those with tasks and those of `JOBRUNNER_ALLOWED_MODULES`. `pkg.*` means the modules in the
            package `pkg` that the application has imported itself; any other name is imported when it is needed.
    """

    def __init__(self, application: Application, names: Iterable[str] = ()) -> None:
        self._application = application
        self._given = {_checked(name, "allowed_modules") for name in names}
        self._paths: dict[Any, str] = {}  # of functions that were found to be allowed, and of registered ones
        self._registered: dict[str, Any] = {}

    @property
    def nothing(self) -> bool:
        """Whether no function but tasks may run: `JOBRUNNER_ALLOWED_MODULES` says `none`."""
        return self._configured() == [NOBODY]

    def allow(self, *names: str) -> None:
        """Allow further modules. Every process of the application must do it, so do it where the module is imported."""
        self._given |= {_checked(name, "allow") for name in names}

    def register(self, function: Callable[..., Any]) -> str:
        """Allow one function, even one inside another, as a decorator does; the newest one of a name counts. Returns its path."""
        path = f"{_home(function)}:{function.__qualname__}"
        self._paths.pop(self._registered.get(path), None)  # one that is defined at each request must not be kept for ever
        self._registered[path] = function
        self._paths[function] = path
        return path

    def path_of(self, function: Any) -> str:
        """`module:qualified.name`, by which a worker finds the function.

        Raises:
            FunctionRefused: it has no such name, or its module is not allowed; the message says what to do.
        """
        function = plain(function)
        try:
            known = self._paths.get(function)
        except TypeError:  # not even hashable
            known = None
        if known is None or self.nothing:
            known = self._path_of(function)
            self._paths[function] = known
        return known

    def function_at(self, path: str) -> Callable[..., Any]:
        """The function that `path_of` has named.

        Raises:
            FunctionRefused: there is none, or it is not one that may run.
        """
        self._refuse_all(path)
        found = self._registered.get(path)
        if found is None:
            found = plain(self._found(path))
            if found is None or (_problem(found) and not _is_computing(found)) or _path(found) != path:
                raise FunctionRefused(
                    repr(path),
                    "is no function of a module that this application allows",
                    hint="it is decorated inside a function that this process has not called" if _INNER in path else _HOW,
                )
        return found  # type: ignore[no-any-return]

    def name_of(self, cls: type) -> str | None:
        """`module:qualified.name` of an enum or exception that may travel; see `jobrunner.values.Classes`."""
        path = f"{_home(cls)}:{cls.__qualname__}"
        return path if self._found(path) is cls else None

    def find(self, name: str) -> type | None:
        """The class of that name, if it may travel."""
        found = self._found(name)
        return found if isinstance(found, type) and f"{_home(found)}:{found.__qualname__}" == name else None

    def _path_of(self, function: Any) -> str:
        if _is_computing(function):
            self._refuse_all(repr(function))
            return f"{_BUILTINS}:{function.__name__}"
        name = getattr(function, "__qualname__", None) or repr(function)
        problem = _problem(function)
        if problem:
            raise FunctionRefused(str(name), problem[0], hint=problem[1])
        self._refuse_all(str(name))
        path = _path(function)
        module = path.partition(":")[0]
        if not self._allows(module):
            raise FunctionRefused(str(name), f"is in the module {module!r}, whose functions may not run as jobs", hint=_HOW)
        if plain(self._found(path)) is not function:
            raise FunctionRefused(
                str(name),
                f"is not what {module!r} has under that name, so that a worker would run something else",
                hint="pass the function as the module has it: a decorator without functools.wraps may have replaced it",
            )
        return path

    def _refuse_all(self, name: str) -> None:
        if self.nothing:
            raise FunctionRefused(name, f"is no task, and {VARIABLE} is {NOBODY!r}", hint="make it a task: @jobs.task")

    def _configured(self) -> list[str]:
        found: Any = os.environ.get(VARIABLE)
        if found is None and self._application.app is not None:
            found = self._application.app.config.get(VARIABLE)
        if not found:
            return []
        names = found.replace(",", " ").split() if isinstance(found, str) else list(found)
        return [_checked(name, VARIABLE) for name in names]

    def _allows(self, module: str) -> bool:
        named = {*self._given, *self._configured()}
        if module in named or any(name.endswith(_INSIDE) and module.startswith(name[:-1]) for name in named):
            return True
        app = self._application.app
        if app is not None and module == (main_name() if app.import_name == "__main__" else app.import_name):
            return True
        return any(_home_of_task(task.fn) == module for task in self._application.registry.values())

    def _found(self, path: str) -> Any:
        """What a module that is allowed has defined under a name, or None."""
        module, _, qualified = path.partition(":")
        if module == _BUILTINS:
            return next((one for one in _COMPUTING if one.__name__ == qualified), None)
        return _defined(self._module(module), qualified) if self._allows(module) else None

    def _module(self, name: str) -> ModuleType | None:
        if name == main_name():
            return sys.modules["__main__"]
        found = sys.modules.get(name)
        if found is None and name in {*self._given, *self._configured()}:
            return importlib.import_module(name)  # named by the application, and not only by a row
        return found


def plain(found: Any) -> Any:
    """A function; for an object that stands for one, such as a task, the function that it wraps."""
    if isinstance(found, (FunctionType, BuiltinFunctionType, MethodType, type, partial)):
        return found
    try:
        wrapped = vars(found).get("__wrapped__")
    except TypeError:
        return found
    return wrapped if isinstance(wrapped, FunctionType) else found


def _problem(function: Any) -> tuple[str, str] | None:
    """Why something has no name by which another process could find it, and what to do instead."""
    if isinstance(function, (FunctionType, BuiltinFunctionType)):
        return _problem_of_name(function)
    if isinstance(function, partial):
        return "is a partial of what cannot travel", "pass the function, and the arguments beside it"
    if inspect.isclass(function):
        return "is a class: its objects could not come back", "pass a function that returns plain data"
    if not callable(function):
        return "is not callable", "pass a function"
    what = "a method of an object" if inspect.ismethod(function) else "an object with __call__"
    return f"is {what}, which cannot travel to a worker", "pass a function of a module, and the object's id as an argument"


def _problem_of_name(function: FunctionType | BuiltinFunctionType) -> tuple[str, str] | None:
    top = "move it to the top of a module, and pass what it needs as arguments"
    if function.__name__ == "<lambda>":
        return "is a lambda, which no other process can find", f"give it a name: {top}"
    if _INNER in function.__qualname__:
        return "is defined inside another function, where no other process can find it", top
    if not isinstance(getattr(function, "__module__", None), str):
        return "belongs to no module, so that no other process can find it", top
    return None


def _is_computing(function: Any) -> bool:
    return any(function is one for one in _COMPUTING)


def _path(function: Any) -> str:
    return f"{_BUILTINS}:{function.__name__}" if _is_computing(function) else f"{_home(function)}:{function.__qualname__}"


def _home(defined: Any) -> str:
    """The module in which a function or class was defined, by the name under which a worker imports it."""
    module = str(defined.__module__)
    if module == "__main__":
        return main_name() or module
    known = module.removeprefix("_")  # `_operator` is where C keeps what everybody knows as `operator`
    if known != module and isinstance(defined, BuiltinFunctionType) and _defined(sys.modules.get(known), defined.__name__) is defined:
        return known
    return module


def main_name() -> str | None:
    """Under which name a worker imports the script that this process runs, if it is one."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return name_of_file(Path(file)) if file else None


def name_of_file(path: Path) -> str:
    """Under which name `--app path/app.py` imports a file: that of its packages, as far as they have an `__init__.py`, and its own."""
    path = path.resolve()
    names, directory = [path.stem] if path.name != "__init__.py" else [], path.parent
    while (directory / "__init__.py").is_file():
        names.insert(0, directory.name)
        directory = directory.parent
    return ".".join(names)


def _defined(module: ModuleType | None, qualified: str) -> Any:
    """What stands under a name in a module's or a class's own dictionary: no attribute is computed."""
    found: Any = module
    for part in qualified.split("."):
        if not isinstance(found, (ModuleType, type)) or (isinstance(found, ModuleType) and found is not module):
            return None
        found = vars(found).get(part)
    return found.__func__ if isinstance(found, staticmethod) else found


def _home_of_task(function: Any) -> str | None:
    """The module that a task allows: the application's own. `jobs.task(name="fetch")(requests.get)` does not open a library to rows."""
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualified, str) or module.partition(".")[0] in _NOBODYS_OWN:
        return None
    loaded = sys.modules.get(module)
    if _INNER in qualified or _defined(loaded, qualified) is not function:
        return _home(function)  # decorated where it was written
    file = getattr(loaded, "__file__", None)
    return _home(function) if file and not _INSTALLED & set(Path(file).parts) else None


def _checked(name: object, where: str) -> str:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.removesuffix(_INSIDE).split(".")):
        raise ConfigurationError(f"{where}: {name!r} is no name of a module", hint="such as shop.reports, or shop.* for all of a package")
    return name


