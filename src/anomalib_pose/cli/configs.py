# SPDX-License-Identifier: Apache-2.0
"""List, print or copy the configurations that come with the package.

anomalib-pose configs                          list them, each with the command that uses it
anomalib-pose configs splatpose_mad.yaml       print one
anomalib-pose configs --copy configs           copy all to a folder, so that those commands find them
"""

import argparse
import shutil
import sys
from importlib.resources import files
from pathlib import Path


def configs_folder() -> Path:
    """Return the folder of the configurations: in the installed package, or at the top of the repository.

    Raises:
        FileNotFoundError: if neither exists.
    """
    package = Path(str(files("anomalib_pose")))
    folders = (package / "configs", package.parents[1] / "configs")
    for folder in folders:
        if folder.is_dir():
            return folder
    msg = f"Expected the configurations in {' or '.join(map(str, folders))}: install anomalib-pose again."
    raise FileNotFoundError(msg)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("name", nargs="?", help="configuration to print, as the list names it")
    action.add_argument("--copy", type=Path, metavar="DIR", help="copy all configurations to this folder")
    parser.add_argument("--overwrite", action="store_true", help="with --copy: replace files that exist")


def run(options: argparse.Namespace) -> None:
    """List, print or copy."""
    folder = configs_folder()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))
    if options.copy is not None:
        copied = copy_configs(folder, names, options.copy, overwrite=options.overwrite)
        sys.stdout.write(f"Copied {copied} configurations to {options.copy}.\n")
    elif options.name is not None:
        sys.stdout.write((folder / _full_name(options.name, names)).read_text(encoding="utf-8"))
    else:
        width = max(map(len, names))
        for name in names:
            first_line = (folder / name).read_text(encoding="utf-8").partition("\n")[0]
            sys.stdout.write(f"{name:{width}}  {first_line.lstrip('# ')}\n")


def copy_configs(folder: Path, names: list[str], target: Path, *, overwrite: bool) -> int:
    """Copy configurations; without ``overwrite``, first check that none exists in the target.

    Args:
        folder: folder of the configurations.
        names: paths of the configurations relative to ``folder``.
        target: folder to copy to; created if it does not exist.
        overwrite: replace files that exist.

    Returns:
        The number of copied files.

    Raises:
        FileExistsError: if a file exists and must not be replaced.
    """
    existing = [target / name for name in names if (target / name).exists()]
    if existing and not overwrite:
        msg = f"{existing[0]} exists already: choose another folder, or give --overwrite."
        raise FileExistsError(msg)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return len(names)


def _full_name(name: str, names: list[str]) -> str:
    """Complete the name of a configuration, which may have the prefix ``configs/`` or lack the suffix ``.yaml``."""
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    if f"{plain}.yaml" not in names:
        msg = f"There is no configuration {name!r}; there are: {', '.join(names)}."
        raise ValueError(msg)
    return f"{plain}.yaml"
