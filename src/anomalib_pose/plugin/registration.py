# SPDX-License-Identifier: Apache-2.0
"""Registers models and data modules of installed distributions with anomalib.

A distribution names its classes in the entry-point groups ``anomalib.models`` and ``anomalib.datamodules``::

    [project.entry-points."anomalib.models"]
    SplatPose = "anomalib_pose.models:SplatPose"

    [project.entry-points."anomalib.datamodules"]
    MAD = "anomalib_pose.data:MAD"

:func:`register` imports them and makes them known wherever anomalib 2.7 looks a class up: the short names of its
command line, ``list_models``, ``get_model``, ``get_datamodule``, and through these the benchmark. It also teaches the
image visualizer our batch fields that are images, and the benchmark to put models with different metrics in one table.
The class's own name is the short name; the entry point's name serves for messages alone. Classes of anomalib itself
keep their names, and so does the first of two plug-ins.
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
    last: str  # what the host module defines last

    def half_imported(self) -> bool:
        """Whether the host module is being imported and lacks something. The hook comes before the mark is gone."""
        return self.last not in vars(sys.modules[self.host]) and _half_imported(self.host)


_KINDS = (
    _Kind("anomalib.models", "anomalib.models", "AnomalibModule", ignores_case=True, last="get_model"),
    _Kind("anomalib.datamodules", "anomalib.data", "AnomalibDataModule", ignores_case=False, last="get_datamodule"),
)

_lock = Lock()
_called = Event()
_registered: set[EntryPoint] = set()
_reported: set[EntryPoint] = set()
_awaited: set[str] = set()


def register(*, import_host: bool = True) -> None:
    """Make the installed plug-ins known to anomalib. Calling it again registers only what is still missing.

    Entry points that cannot be loaded, name something else than a subclass, or ask for a taken name are logged as
    warnings with their names and distributions, and skipped.

    Args:
        import_host: Import anomalib first. With ``False`` only those parts of anomalib that are imported by now are
            served, and parts that are just being imported are served when they are first used.

    Raises:
        ImportError: If anomalib cannot be imported and ``import_host`` is true.
    """
    if import_host:
        for name in (*(kind.host for kind in _KINDS), HOST):
            importlib.import_module(name)
    # The plug-ins that are imported below make anomalib's hook call this function again, in this thread or in one
    # that holds an import lock this thread needs. So a second call never waits; the first one does its work.
    _called.set()
    if not _lock.acquire(blocking=False):
        return
    try:
        tried: set[EntryPoint] = set()
        while _called.is_set():
            _called.clear()
            _register_visualizer()
            register_benchmark_table()
            _register_classes(tried)
    finally:
        _lock.release()


def _register_visualizer() -> None:
    if not _half_imported(HOST):
        register_panels()


def _register_classes(tried: set[EntryPoint]) -> None:
    """Serve each imported part of anomalib; where an import is under way, be called again when it is over."""
    kinds = [kind for kind in _KINDS if kind.host in sys.modules]
    half = {kind.host for kind in kinds if kind.half_imported()}
    if half:
        # a plug-in that is imported now could need what anomalib has not defined yet
        _watch(kinds, half)
        return
    for kind in kinds:
        for entry in sorted(entry_points(group=kind.group), key=_order):
            if entry in _registered or entry in tried:
                continue
            if _half_imported(entry.module):
                half.add(entry.module)
                continue
            tried.add(entry)
            try:
                _register_entry(entry, kind)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # another package's fault must not stop anomalib
                under_way = _under_way(entry.module)
                if under_way:
                    half |= under_way
                else:
                    _report(entry, f"{type(error).__name__}: {error}")
    if half:
        _watch(kinds, half)


def _register_entry(entry: EntryPoint, kind: _Kind) -> None:
    """Load one entry point and make its class known under its own name."""
    host = sys.modules[kind.host]
    base = vars(host)[kind.base]
    # asked before the import, because anomalib and its command line know every class that is defined
    owner = _owner(entry.attr.rpartition(".")[2], kind)
    if owner is not None and entry.module not in _paths(owner):
        _report(entry, f"the name is taken by {_path(owner)}, which keeps it")
        return
    found = entry.load()
    if not (inspect.isclass(found) and issubclass(found, base)):
        _report(entry, f"expected a subclass of {kind.host}.{kind.base}, found {found!r}")
        return
    name = found.__name__
    owner = _owner(name, kind)
    if owner is not None and owner is not found:
        _report(entry, f"the name {name} is taken by {_path(owner)}, which keeps it")
        return
    if name in vars(host) and vars(host)[name] is not found:
        _report(entry, f"{kind.host}.{name} is something else: {vars(host)[name]!r}")
        return
    setattr(host, name, found)
    allowed = vars(host).get("ALLOWED_MODULES")
    if allowed is not None:
        allowed.update(_paths(found))
        if base not in found.__bases__:
            _logger.info("%s is no direct subclass of %s: get_model finds it as a class path alone", name, kind.base)
    _registered.add(entry)


def _owner(name: str, kind: _Kind) -> type | None:
    """Class that has a name already: one of anomalib's own, or one that a plug-in has registered."""
    host = vars(sys.modules[kind.host])
    for known in _subclasses(host[kind.base]):
        own = known.__module__.startswith("anomalib.") or host.get(known.__name__) is known
        # get_model ignores case
        same = known.__name__ == name or (kind.ignores_case and known.__name__.lower() == name.lower())
        if own and same:
            return known
    return None


def _subclasses(base: type) -> Iterator[type]:
    child: type
    for child in base.__subclasses__():
        yield child
        yield from _subclasses(child)


def _paths(found: type) -> Iterator[str]:
    """Modules that a class can be imported from: the one that defines it, and packages around that export it."""
    parts = found.__module__.split(".")
    yield found.__module__
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), found.__name__, None) is found:
            yield package


def _path(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


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
    """Whether a module, or a package around it, is just being imported."""
    parts = name.split(".")
    modules = (sys.modules.get(".".join(parts[:count])) for count in range(1, len(parts) + 1))
    # the import system's own mark; there is no public one
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def _under_way(name: str) -> set[str]:
    """Modules that are just being imported, of the distribution package that a module lies in."""
    package = name.partition(".")[0]
    return {m for m in list(sys.modules) if (m == package or m.startswith(f"{package}.")) and _half_imported(m)}


class _Watched(ModuleType):
    """A module of anomalib that registers the plug-ins when it is first used after the imports that were awaited."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and not any(_half_imported(module) for module in _awaited):
            # a plain module again; register() makes it watched anew if something is still half imported
            self.__class__ = ModuleType  # type: ignore[assignment]
            try:
                register(import_host=False)
            except Exception as error:  # what was asked for is the host's own, and there
                _logger.warning("Plug-ins of anomalib are not registered: %s: %s", type(error).__name__, error)
        return ModuleType.__getattribute__(self, name)


def _watch(kinds: list[_Kind], awaited: set[str]) -> None:
    """Call :func:`register` at the first use of a host module after the awaited modules are complete."""
    _awaited.clear()
    _awaited.update(awaited)
    for kind in kinds:
        host = sys.modules[kind.host]
        # leave a module alone whose class somebody else has replaced
        if type(host) is ModuleType:
            host.__class__ = _Watched
