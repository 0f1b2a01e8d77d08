"""Owns finding the application: from `--app`, the environment, pyproject.toml or the files in the working directory to its JobRunner.

It must not run anything but the application's own import and factory; whatever these raise comes back as one AppImportError.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import sys
import tomllib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jobrunner.errors import AppImportError, ConfigurationError
from jobrunner.tasks import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from jobrunner.app import JobRunner

_APPS = ("app", "application")
_FACTORIES = ("create_app", "make_app")
_FILES = ("app.py", "wsgi.py")
_CALL = re.compile(r"^(\w+)\((.*)\)$", re.DOTALL)
_NO_JOBRUNNER = "call JobRunner(app), or jobs.init_app(app) in the app's factory"


def load(spec: str | None = None) -> JobRunner:
    """Import the application and give its JobRunner.

    Args:
        spec: `module`, `module:attribute`, `module:create_app()`, `path/app.py`, `path/app.py:attribute`. None means the first of
            `JOBRUNNER_APP`, `FLASK_APP`, `app` of `[tool.jobrunner]` in pyproject.toml, app.py and wsgi.py of the working directory.

    Raises:
        AppImportError: there is nothing to import, the import failed (`__cause__` is the original error; the message has its place),
            or the application has no JobRunner.
    """
    chosen, origin = (spec, "") if spec else _default()
    module_name, attribute = _parse(chosen)
    with _importing(chosen, origin):
        module = importlib.import_module(module_name)
    found = _named(module, attribute, chosen, origin) if attribute else _searched(module, chosen, origin)
    if found is None:
        raise AppImportError(f'app "{chosen}"{origin} has no JobRunner', hint=_NO_JOBRUNNER)
    with _importing(chosen, origin):
        found.lifecycle.loaded()
    return found


def find_jobrunner(source: object) -> JobRunner:
    """The JobRunner of a Flask app, or `source` itself when it is one.

    Raises:
        ConfigurationError: it is neither, or the app has none.
    """
    found = _jobrunner_of(source)
    if found is None:
        raise ConfigurationError(f"{source!r} has no JobRunner", hint=_NO_JOBRUNNER)
    return found


def adopt(app: object, spec: str | None = None) -> JobRunner:
    """The JobRunner of an application that somebody else, such as `flask`, has imported for a command; as `load` in all else.

    Args:
        app: the Flask app.
        spec: what it was imported by, for messages.

    Raises:
        ConfigurationError: it has no JobRunner.
        AppImportError: what it does once it is imported failed, such as the import of its task modules.
    """
    found = find_jobrunner(app)
    with _importing(spec or str(getattr(app, "import_name", app)), ""):
        found.lifecycle.loaded()
    return found


def _default() -> tuple[str, str]:
    for variable in ("JOBRUNNER_APP", "FLASK_APP"):
        if value := os.environ.get(variable, "").strip():
            return value, f" (from {variable})"
    project = Path("pyproject.toml")
    if project.is_file():
        try:
            tool = tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise AppImportError(f"pyproject.toml cannot be read: {error}") from error
        if value := tool.get("jobrunner", {}).get("app"):
            return str(value), " (from [tool.jobrunner] in pyproject.toml)"
    for name in _FILES:
        if Path(name).is_file():
            return name, f" (found {name})"
    raise AppImportError(
        "there is no application: no --app, JOBRUNNER_APP, FLASK_APP, [tool.jobrunner] in pyproject.toml, app.py or wsgi.py here",
        hint="jobrunner --app module:app …     or set JOBRUNNER_APP",
    )


def _parse(spec: str) -> tuple[str, str]:
    """Module name and attribute; puts the directory to import from first on sys.path."""
    target, _, attribute = spec.partition(":")
    path = Path(target)
    if path.suffix != ".py" and "/" not in target:
        _add_to_path(Path.cwd())
        return target, attribute
    resolved = path.resolve()
    if resolved.is_dir():
        resolved /= "__init__.py"
    if not resolved.is_file():
        raise AppImportError(f'could not import app "{spec}": there is no file {path}')
    names = [] if resolved.name == "__init__.py" else [resolved.stem]
    directory = resolved.parent
    while (directory / "__init__.py").is_file():
        names.insert(0, directory.name)
        directory = directory.parent
    _add_to_path(directory)
    return ".".join(names), attribute


def _add_to_path(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _named(module: ModuleType, attribute: str, spec: str, origin: str) -> JobRunner | None:
    call = _CALL.match(attribute.strip())
    name = call[1] if call else attribute.strip()
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise AppImportError(
                f'could not import app "{spec}"{origin}: {module.__name__} has no {name!r}',
                hint=f"it has: {_candidates(module) or 'no app at all'}",
            )
        found = getattr(found, part)
    arguments: tuple[Any, ...] = ()
    if call and call[2].strip():
        try:
            arguments = ast.literal_eval(f"({call[2]},)")
        except (ValueError, SyntaxError) as error:
            raise AppImportError(f'could not import app "{spec}"{origin}: the arguments of {name} must be plain literals') from error
    direct = None if call else _jobrunner_of(found)
    if direct is not None or not callable(found) or _is_flask(found):
        return direct
    with _importing(spec, origin):
        made = found(*arguments)
    # A factory may return anything; what it connected to the module's own JobRunner still counts.
    return _jobrunner_of(made) or (_only(module, spec) if _is_flask(made) is False else None)


def _searched(module: ModuleType, spec: str, origin: str) -> JobRunner | None:
    """The JobRunner of a module: its Flask app's, else its factory's app's, else one that stands there by itself."""
    values = vars(module)
    flasks = [values[name] for name in _APPS if name in values] + [value for value in values.values() if _is_flask(value)]
    for app in flasks:
        if (found := _jobrunner_of(app)) is not None:
            return found
    for name in _FACTORIES:
        if callable(values.get(name)):
            with _importing(spec, origin):
                made = values[name]()
            if (found := _jobrunner_of(made)) is not None:
                return found
    return _only(module, spec)


def _only(module: ModuleType, spec: str) -> JobRunner | None:
    values = {name: _held_by(value) for name, value in vars(module).items()}
    found = {id(value): (name, value) for name, value in values.items() if value is not None}
    if len(found) > 1:
        names = " and ".join(name for name, _ in found.values())
        raise AppImportError(
            f'app "{spec}" has several JobRunners: {names}', hint=f"say which: --app {module.__name__}:{next(iter(found.values()))[0]}"
        )
    return next(iter(found.values()))[1] if found else None


def _candidates(module: ModuleType) -> str:
    return ", ".join(name for name, value in vars(module).items() if _jobrunner_of(value) is not None or name in _FACTORIES)


def _is_jobrunner(value: object) -> bool:
    # Not isinstance: this module stands below `app`, which uses it.
    return isinstance(_attribute(value, "registry"), Registry) and _attribute(value, "execution_context") is not None


def _is_flask(value: object) -> bool:
    if isinstance(value, type):
        return False
    return isinstance(_attribute(value, "extensions"), dict) and _attribute(value, "app_context") is not None


def _attribute(value: object, name: str) -> Any:
    """An attribute, or None. Modules hold stand-ins for what is not there yet, such as `flask.request`: any look at these raises."""
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001  whatever the stand-in says, it is not what is looked for
        return None


def _jobrunner_of(value: Any) -> JobRunner | None:
    if isinstance(value, type):
        return None
    if not _is_flask(value):
        return _held_by(value)
    own = value.extensions.get("jobrunner")
    if own is not None:
        return _held_by(own)
    for extension in value.extensions.values():
        if (found := _held_by(extension)) is not None:
            found.init_app(value)  # what holds it does not know the app: its jobs get the app's context and its database
            return found
    return None


def _held_by(value: Any) -> JobRunner | None:
    """A JobRunner itself, or that of an object that holds one, such as an app of `jobrunner.compat.celery`."""
    if isinstance(value, type):
        return None
    if not _is_jobrunner(value):
        value = _attribute(value, "__jobrunner__") if hasattr(type(value), "__jobrunner__") else None
    return cast("JobRunner", value) if _is_jobrunner(value) else None


@contextlib.contextmanager
def _importing(spec: str, origin: str) -> Iterator[None]:
    try:
        yield
    except AppImportError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"SystemExit: {error.code}" if isinstance(error, SystemExit) else f"{type(error).__name__}: {_said(error)}"
        place = _place(error)
        hint = error.hint if isinstance(error, ConfigurationError) else ""
        raise AppImportError(f'could not import app "{spec}"{origin}: {what}{f"   ({place})" if place else ""}', hint=hint) from error


def _said(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    try:
        return str(error)
    except Exception:  # noqa: BLE001  the application's own exception may fail to say anything
        return "(no message)"


def _place(error: BaseException) -> str:
    """`file:line` of the application's own innermost frame, as short as it can be written."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    ours = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<", ours))]
    written = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(sys.base_prefix)]
    return f"{_short(written[-1].filename)}:{written[-1].lineno}" if written else ""


def _short(filename: str) -> str:
    path = Path(filename)
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
