# SPDX-License-Identifier: Apache-2.0
"""Registration of models and data modules of installed distributions with anomalib.

A distribution names its classes in the entry-point groups ``anomalib.models`` and ``anomalib.datamodules``::

    [project.entry-points."anomalib.models"]
    SplatPose = "anomalib_pose.models:SplatPose"

    [project.entry-points."anomalib.datamodules"]
    MAD = "anomalib_pose.data:MAD"

:func:`register` imports them and makes them known wherever anomalib 2.7 looks a class up: the short names of its
command line, ``list_models``, ``get_model``, ``get_datamodule``, and through these the benchmark. It also makes the
image visualizer show this package's batch fields that are images, and the benchmark write models with different metrics
to one table. The class's own name is the short name; the entry point's name appears only in messages. Classes of
anomalib keep their names. If two plug-ins have classes of the same name, the first one keeps it.
"""

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from threading import Event, Lock
from types import ModuleType
from typing import Any

from anomalib_pose.plugin.benchmark_table import register_benchmark_table
from anomalib_pose.plugin.host_version import warn_about_host_version
from anomalib_pose.visualization import HOST, register_panels

__all__ = ["register"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kind:
    """One entry-point group, and the module and base class of anomalib that its classes belong to."""

    group: str
    host: str
    base: str
    ignores_case: bool
    last: str  # the name that the host module defines last

    def half_imported(self) -> bool:
        """Return whether the host module is being imported and its last name is missing.

        The name is checked too, because the autoload hook runs before the import system clears its mark.
        """
        return self.last not in vars(sys.modules[self.host]) and _half_imported(self.host)


_KINDS = (
    _Kind("anomalib.models", "anomalib.models", "AnomalibModule", ignores_case=True, last="get_model"),
    _Kind("anomalib.datamodules", "anomalib.data", "AnomalibDataModule", ignores_case=False, last="get_datamodule"),
)

_lock = Lock()
_called = Event()
_registered: set[EntryPoint] = set()
_reported: set[EntryPoint] = set()
_awaited_modules: set[str] = set()


def register(*, import_host: bool = True) -> None:
    """Register the installed plug-ins with anomalib. A further call registers only entry points that are still missing.

    An entry point is skipped with a warning if it cannot be loaded, does not name a subclass of the base class, or
    needs a name that is taken. The warning has the entry point's name and distribution.

    Args:
        import_host: Import anomalib first. With ``False`` the plug-ins are registered only with the parts of anomalib
            that are already imported. For parts whose import is under way this happens at their first use.

    Raises:
        ImportError: If anomalib cannot be imported and ``import_host`` is true.
    """
    if import_host:
        for name in (*(kind.host for kind in _KINDS), HOST):
            importlib.import_module(name)
    # Importing the plug-ins below makes the autoload hook call this function again, in this thread or in a thread that
    # holds an import lock that this thread needs. So a second call never waits: the first call does its work.
    warn_about_host_version()
    _called.set()
    if not _lock.acquire(blocking=False):
        return
    try:
        attempted: set[EntryPoint] = set()
        while _called.is_set():
            _called.clear()
            _register_visualizer()
            register_benchmark_table()
            _register_classes(attempted)
    finally:
        _lock.release()


def _register_visualizer() -> None:
    if not _half_imported(HOST):
        register_panels()


def _register_classes(attempted: set[EntryPoint]) -> None:
    """Register with each imported part of anomalib; if an import is under way, arrange a call after its end.

    Args:
        attempted: entry points that this call of ``register`` has already tried; new ones are added.
    """
    kinds = [kind for kind in _KINDS if kind.host in sys.modules]
    half_imported = {kind.host for kind in kinds if kind.half_imported()}
    if half_imported:
        # a plug-in that is imported now could need names that anomalib has not defined yet
        _watch(kinds, half_imported)
        return
    for kind in kinds:
        for entry in sorted(entry_points(group=kind.group), key=_order):
            if entry in _registered or entry in attempted:
                continue
            if _half_imported(entry.module):
                half_imported.add(entry.module)
                continue
            attempted.add(entry)
            try:
                _register_entry(entry, kind)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # an error of another package must not stop anomalib
                awaited = _half_imported_modules(entry.module)
                if awaited:
                    half_imported |= awaited
                else:
                    _report(entry, f"{type(error).__name__}: {error}")
    if half_imported:
        _watch(kinds, half_imported)


def _register_entry(entry: EntryPoint, kind: _Kind) -> None:
    """Load one entry point and make its class known under its own name."""
    host = sys.modules[kind.host]
    base = vars(host)[kind.base]
    # checked before the import, because anomalib and its command line list every class that is defined
    owner = _owner(entry.attr.rpartition(".")[2], kind)
    if owner is not None and entry.module not in _paths(owner):
        _report(entry, f"the name is taken by {_path(owner)}, which keeps it")
        return
    plugin_class = entry.load()
    if not (inspect.isclass(plugin_class) and issubclass(plugin_class, base)):
        _report(entry, f"expected a subclass of {kind.host}.{kind.base}, found {plugin_class!r}")
        return
    name = plugin_class.__name__
    owner = _owner(name, kind)
    if owner is not None and owner is not plugin_class:
        _report(entry, f"the name {name} is taken by {_path(owner)}, which keeps it")
        return
    if name in vars(host) and vars(host)[name] is not plugin_class:
        _report(entry, f"{kind.host}.{name} is already defined as {vars(host)[name]!r}")
        return
    setattr(host, name, plugin_class)
    allowed = vars(host).get("ALLOWED_MODULES")
    if allowed is not None:
        allowed.update(_paths(plugin_class))
        if base not in plugin_class.__bases__:
            _logger.info("%s is no direct subclass of %s: get_model finds it only by its class path", name, kind.base)
    _registered.add(entry)


def _owner(name: str, kind: _Kind) -> type | None:
    """Return the class that already has a name: a class of anomalib, or of a registered plug-in."""
    host = vars(sys.modules[kind.host])
    for candidate in _subclasses(host[kind.base]):
        registered = candidate.__module__.startswith("anomalib.") or host.get(candidate.__name__) is candidate
        # get_model ignores case
        same = candidate.__name__ == name or (kind.ignores_case and candidate.__name__.lower() == name.lower())
        if registered and same:
            return candidate
    return None


def _subclasses(base: type) -> Iterator[type]:
    child: type
    for child in base.__subclasses__():
        yield child
        yield from _subclasses(child)


def _paths(plugin_class: type) -> Iterator[str]:
    """Yield the modules that export a class: the module that defines it, and enclosing packages."""
    parts = plugin_class.__module__.split(".")
    yield plugin_class.__module__
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), plugin_class.__name__, None) is plugin_class:
            yield package


def _path(plugin_class: type) -> str:
    return f"{plugin_class.__module__}.{plugin_class.__qualname__}"


def _order(entry: EntryPoint) -> tuple[str, str, str]:
    return (_distribution(entry), entry.name, entry.value)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"


def _report(entry: EntryPoint, reason: str) -> None:
    """Log why an entry point is skipped, once."""
    if entry in _reported:
        return
    _reported.add(entry)
    _logger.warning(
        "Entry point '%s = %s' (group %s, distribution %s) is not registered with anomalib: %s",
        entry.name,
        entry.value,
        entry.group,
        _distribution(entry),
        reason,
    )


def _half_imported(name: str) -> bool:
    """Return whether the import of a module, or of a package around it, is under way."""
    parts = name.split(".")
    modules = (sys.modules.get(".".join(parts[:count])) for count in range(1, len(parts) + 1))
    # the import system's own mark; a public one does not exist
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def _half_imported_modules(name: str) -> set[str]:
    """Return the modules of a module's top-level package whose import is under way."""
    package = name.partition(".")[0]
    return {m for m in list(sys.modules) if (m == package or m.startswith(f"{package}.")) and _half_imported(m)}


class _Watched(ModuleType):
    """A module of anomalib that registers the plug-ins when it is first used after the awaited imports."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and not any(_half_imported(module) for module in _awaited_modules):
            # a plain module again; register() watches it again if an import is still under way
            self.__class__ = ModuleType  # type: ignore[assignment]
            try:
                register(import_host=False)
            except Exception as error:  # the attribute belongs to anomalib and exists without the plug-ins
                _logger.warning("Plug-ins of anomalib are not registered: %s: %s", type(error).__name__, error)
        return ModuleType.__getattribute__(self, name)


def _watch(kinds: list[_Kind], awaited_modules: set[str]) -> None:
    """Call :func:`register` at the first use of a host module after the awaited modules are imported."""
    _awaited_modules.clear()
    _awaited_modules.update(awaited_modules)
    for kind in kinds:
        host = sys.modules[kind.host]
        # a module whose class another package has replaced stays as it is
        if type(host) is ModuleType:
            host.__class__ = _Watched
