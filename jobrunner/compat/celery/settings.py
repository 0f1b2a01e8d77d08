"""Owns `app.conf`: settings by today's names, by the upper-case ones and by a namespace's, with Celery's defaults behind them.

It must not know what they mean, nor print a value: among them are passwords.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime, tzinfo
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

from jobrunner.compat.celery.conf import DEFAULTS, OLD_NAMES, SETTINGS, Feature
from jobrunner.compat.celery.exceptions import ImproperlyConfigured

_ENVIRON = {"broker_url": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}
_JSON = {"json", "application/json"}
_Loader = Callable[[], Mapping[str, Any]]


class Settings(MutableMapping[str, Any]):
    """The configuration of an app: a mapping, whose keys are attributes as well.

    What was set on it goes before what was loaded, that before what was added as a default, that before Celery's own. Keys that are
    none of Celery's are kept as they are. Nothing is loaded before the first reading.

    Args:
        loader: reads the source of the configuration.
        namespace: a prefix that the source's keys have: `CELERY` makes `CELERY_TASK_ALWAYS_EAGER` of `task_always_eager`.
        lock: held while what has been read is taken; the app's, whose tasks read settings while they are made.
    """

    def __init__(self, loader: _Loader | None = None, namespace: str | None = None, lock: threading.RLock | None = None) -> None:
        vars(self).update(_changes={}, _added={}, _loaded=None, _loader=loader, _namespace=namespace, _on_loaded=None)
        vars(self).update(_is_ready=False, _lock=lock or threading.RLock(), _readers=set(), _caller=None)

    def source(self, loader: _Loader, namespace: str | None) -> None:
        """Take another source; it is read when something is asked for next."""
        vars(self).update(_loader=loader, _loaded=None, _namespace=namespace, _is_ready=False)

    def when_loaded(self, callback: Callable[[], Any]) -> None:
        """Call back once after the source has been read; after the next reading as well, when it raises: nothing is read then.

        Not when it is that callback which asks for it, by naming another source: it would be called for ever.
        """
        if vars(self)["_caller"] != threading.get_ident():
            vars(self)["_on_loaded"] = callback

    def load(self) -> None:
        """Read the source, if that has not been done. Another thread waits until it has, so that it does not go by the defaults.

        No lock is held while it is read: that may import a module, and a thread which imports it already may be asking for a setting.
        Two threads that come at once both read it, and one of them takes what it says.
        """
        own, me = vars(self), threading.get_ident()
        while not own["_is_ready"]:
            if me in own["_readers"] or (me == own["_caller"] and own["_loaded"] is not None):
                return  # what the source itself asks for while it is read has no answer there
            loader = own["_loader"]
            own["_readers"].add(me)
            try:
                found: dict[str, Any] = {} if loader is None else {self._name(key): value for key, value in loader().items()}
            finally:
                own["_readers"].discard(me)
            with own["_lock"]:
                if own["_loader"] is loader and not own["_is_ready"]:  # else another source was named meanwhile, or somebody was faster
                    self._take(own, found, me)

    def _take(self, own: dict[str, Any], found: dict[str, Any], me: int) -> None:
        own["_loaded"] = found
        if me == own["_caller"]:
            return  # the callback has named another source: it is ready when the callback is through
        callback, own["_on_loaded"], own["_caller"] = own["_on_loaded"], None, me
        try:
            if callback is not None:
                callback()
        except BaseException:
            # What was refused is refused each time, not only the first time that somebody reads a setting.
            own.update(_loaded=None, _on_loaded=own["_on_loaded"] or callback)
            raise
        finally:
            own["_caller"] = None
        own["_is_ready"] = own["_loaded"] is not None  # else another source was named, and `load` goes on

    def add_defaults(self, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Take values for what nobody sets otherwise."""
        given = values() if callable(values) else values
        vars(self)["_added"].update({self._name(key): value for key, value in given.items()})

    def is_set(self, name: str) -> bool:
        """Whether somebody has set it, to whatever value."""
        self.load()
        key = self._name(name)
        return any(key in layer for layer in self._layers()) or key in _environ()

    def ones_set(self) -> dict[str, Feature]:
        """The settings of Celery's that somebody has set."""
        return {name: feature for name, feature in SETTINGS.items() if self.is_set(name)}

    def without_defaults(self) -> dict[str, Any]:
        """Everything that somebody has set."""
        self.load()
        changes, loaded, added = self._layers()
        return {**added, **loaded, **changes}

    def check(self) -> None:
        """Refuse what could only be honoured by running code out of the database.

        Raises:
            ImproperlyConfigured: a serializer is not JSON.
        """
        for name in ("task_serializer", "result_serializer"):
            check_serializer(self[name], name)
        accepted = self["accept_content"] or ()
        accepted = [accepted] if isinstance(accepted, str) else list(accepted)
        if not _JSON & {str(one).lower() for one in accepted}:
            raise ImproperlyConfigured(f"accept_content={accepted!r} lacks json: Jobrunner stores arguments and results as typed JSON only")

    def _layers(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What was set, what was loaded, what was added as defaults. Nothing is loaded for whoever asks while it is read."""
        own = vars(self)
        return own["_changes"], own["_loaded"] or {}, own["_added"]

    def _name(self, key: Any) -> Any:
        if not isinstance(key, str) or key in SETTINGS:
            return key
        namespace = vars(self)["_namespace"]
        if namespace and key.startswith(prefix := f"{namespace}_"):
            short = key.removeprefix(prefix)
            if (lower := short.lower()) in SETTINGS:
                return lower
            return OLD_NAMES.get(short, OLD_NAMES.get(key, key))
        return OLD_NAMES.get(key, key)

    def __getitem__(self, key: str) -> Any:
        self.load()
        name = self._name(key)
        if name in (environ := _environ()):
            return environ[name]
        for layer in self._layers():
            if name in layer:
                return layer[name]
        return DEFAULTS[name]

    def __setitem__(self, key: str, value: Any) -> None:
        vars(self)["_changes"][self._name(key)] = value

    def __delitem__(self, key: str) -> None:
        name = self._name(key)
        found = [layer for layer in self._layers() if name in layer]
        if not found:
            raise KeyError(key)
        for layer in found:
            del layer[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Settings has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __contains__(self, key: object) -> bool:
        name = self._name(key)
        return name in DEFAULTS or name in self.without_defaults()

    def __iter__(self) -> Iterator[str]:
        return iter({**DEFAULTS, **self.without_defaults()})

    def __len__(self) -> int:
        return len({**DEFAULTS, **self.without_defaults()})

    def __repr__(self) -> str:
        return f"<Settings: {len(vars(self)['_changes'])} changed>"  # never a value: URLs hold passwords


def check_serializer(value: Any, where: str) -> None:
    """Refuse everything but JSON. Raises ImproperlyConfigured with what to do."""
    if value is None or str(value).lower() in _JSON:
        return
    advice = "pass ids and plain data: tuples, sets, dates, Decimal, UUID, bytes and paths travel as they are"
    if str(value).lower() == "pickle":
        advice = f"whoever could write a row could run code; {advice}"
    raise ImproperlyConfigured(f"{where}={value!r}: Jobrunner stores arguments and results as typed JSON only; {advice}")


def read_object(source: Any, *, silent: bool = False) -> dict[str, Any]:
    """The settings of a mapping, a module, a class, an object, or what stands under `module`, `module:attribute` or `module.attribute`.

    Raises:
        ImproperlyConfigured, ImportError: a name leads nowhere; an empty dict when `silent`.
    """
    try:
        found = symbol_by_name(source) if isinstance(source, str) else source
    except (ImportError, AttributeError):
        if silent:
            return {}
        raise
    if isinstance(found, Mapping):
        return dict(found)
    public = {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}
    return {name: value for name, value in public.items() if not isinstance(value, ModuleType)}


def symbol_by_name(name: Any) -> Any:
    """What stands under `module:attribute`, `module` or `module.attribute`; anything but text as it is."""
    if not isinstance(name, str):
        return name
    module, colon, attribute = name.partition(":")
    if colon:
        return _attribute(importlib.import_module(module), attribute)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        module, _, attribute = name.rpartition(".")
        if not module or (error.name is not None and not name.startswith(error.name)):
            raise  # the module is there, and what it imports is not
        return _attribute(importlib.import_module(module), attribute)


def zone_of(conf: Settings) -> tzinfo:
    """The zone of the setting `timezone`; else UTC, or that of this host when `enable_utc` is off."""
    name = conf["timezone"]
    if not name:
        return UTC if conf["enable_utc"] else datetime.now().astimezone().tzinfo or UTC
    return name if isinstance(name, tzinfo) else ZoneInfo(str(name))


def _attribute(found: Any, path: str) -> Any:
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _environ() -> dict[str, str]:
    return {name: os.environ[variable] for name, variable in _ENVIRON.items() if os.environ.get(variable)}
