# SPDX-License-Identifier: Apache-2.0
"""Hook that lets the stock ``anomalib`` command and API find the plug-in's models and data modules by short names.

anomalib 2.7 does not look for plug-ins. But it imports torch, and ``import torch`` calls every entry point of the group
``torch.backends``. :func:`install` is such an entry point. It imports neither anomalib nor the plug-in. It installs an
import finder that calls :func:`anomalib_pose.plugin.register` as soon as anomalib is imported.

An entry point of that group that fails breaks ``import torch`` for the whole environment. Therefore this module lies
outside the package, uses only the standard library, and turns every failure into a logged warning.

``ANOMALIB_POSE_AUTOLOAD=0`` switches the hook off, as do ``disabled``, ``off``, ``no``, ``false`` and an empty value.
``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` has the same effect, because torch then calls no entry point at all. Dotted class
paths, ``anomalib_pose.register()`` and the command ``anomalib-pose`` work without the hook.
"""

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SWITCH = "ANOMALIB_POSE_AUTOLOAD"
OFF = frozenset(("", "0", "false", "no", "off", "disable", "disabled"))
ON = frozenset(("1", "true", "yes", "on", "enable", "enabled"))
PACKAGE = "anomalib_pose"
HOST_MODULES = ("anomalib.data", "anomalib.models", "anomalib.visualization", "anomalib.engine", "anomalib.pipelines")

_logger = logging.getLogger(__name__)
_reported: set[str] = set()


def install() -> None:
    """Install the import finder; if anomalib is already imported, register the plug-in at once.

    Never raises. Further calls change nothing.
    """
    try:
        switch = os.environ.get(SWITCH, "1").strip().lower()
        if switch in OFF:
            return
        if switch not in ON:
            _warn_once(
                "switch", "%s should be 1 or 0, got %r: anomalib_pose is registered with anomalib.", SWITCH, switch
            )
        if PACKAGE not in sys.modules and importlib.util.find_spec(PACKAGE) is None:
            _warn_once(
                "package",
                "No module named '%s', so it is not registered with anomalib. If its folder has moved, install it "
                "again; or remove it by `pip uninstall anomalib-pose`.",
                PACKAGE,
            )
            return
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        # anomalib itself may be importing torch: then its import is under way, and the finder comes too late for it
        if any(name in sys.modules for name in HOST_MODULES):
            _register()
    except Exception as error:  # an error here would break `import torch`
        _warn(error)


def _register() -> None:
    """Register the plug-in; every error except ``KeyboardInterrupt`` becomes a warning."""
    try:
        importlib.import_module("anomalib_pose.plugin").register(import_host=False)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # includes SystemExit and the panics of compiled modules
        _warn(error)


def _warn(error: BaseException) -> None:
    """Log each type of error once, because the error repeats for each imported module of anomalib."""
    _warn_once(
        type(error).__name__,
        "anomalib_pose could not be registered with anomalib (%s: %s); anomalib does not know its short names. "
        "Set %s=0 to switch the registration off.",
        type(error).__name__,
        error,
        SWITCH,
    )


def _warn_once(kind: str, message: str, *values: object) -> None:
    """Log a warning, unless one of this kind is logged already."""
    if kind not in _reported:
        _reported.add(kind)
        _logger.warning(message, *values)


class _Finder(MetaPathFinder):
    """Import finder for ``HOST_MODULES``, which asks the other finders and wraps the loaders that they return."""

    def __init__(self) -> None:
        self.waiting = {name for name in HOST_MODULES if name not in sys.modules}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def loaded(self, name: str) -> None:
        """Stop waiting for a module that is loaded; remove this finder after the last one."""
        self.waiting.discard(name)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader(Loader):
    """Loader that runs the real loader, makes it the module's loader again, and registers the plug-ins."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.finder.loaded(module.__name__)
        _register()
