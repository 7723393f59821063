# SPDX-License-Identifier: Apache-2.0
"""Training part of ``transforms.json``: split lists of nerfstudio, and one file a split as Blender's NeRF data has."""

from pathlib import Path
from typing import Any

from anomalib_pose.data.files import read_json
from anomalib_pose.data.posed.pose_files import FileFinder

SPLIT_LISTS = ("train_filenames", "val_filenames", "test_filenames")
"""Keys of nerfstudio's lists of images. Training uses the first list, or else all frames of no list."""

_ALL, _TRAINING = "transforms.json", "transforms_train.json"
_SPLIT_FILES = (_ALL, _TRAINING, "transforms_val.json", "transforms_test.json")


def find_transforms(folder: Path) -> Path | None:
    """Return ``transforms.json`` of a folder, or else ``transforms_train.json``, or None."""
    return next((folder / name for name in (_ALL, _TRAINING) if (folder / name).is_file()), None)


def training_entries(
    path: Path, content: dict[str, Any], entries: list[dict[str, Any]], finder: FileFinder
) -> tuple[list[dict[str, Any]], list[str]]:
    """Select the frames for training by the split lists of a file, if there are any.

    Args:
        path: the file, for messages.
        content: the whole file.
        entries: its frames.
        finder: finder of the images.

    Returns:
        The frames for training, and the names in the lists that no frame has.

    Raises:
        ValueError: if a list is not a list of names, or leaves no frame for training.
    """
    lists = {key: content[key] for key in SPLIT_LISTS if content.get(key) is not None}
    if not lists:
        return entries, []
    for key, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            msg = f"{path} should have a list of image names as {key!r}, got {names!r:.60}."
            raise ValueError(msg)
    keys = {key: {finder.key(name) for name in names} for key, names in lists.items()}
    training = SPLIT_LISTS[0]
    chosen, excluded = keys.get(training), set().union(*(keys[key] for key in keys if key != training))
    frame_keys = [finder.key(entry["file_path"]) for entry in entries]
    selected = [
        entry
        for entry, key in zip(entries, frame_keys, strict=True)
        if (key in chosen if chosen is not None else key not in excluded)
    ]
    if not selected:
        msg = f"{path} has no frame for training: its {', '.join(lists)} leave none of {len(entries)} frames."
        raise ValueError(msg)
    known = set(frame_keys)
    unknown = [name for names in lists.values() for name in names if finder.key(name) not in known]
    return selected, unknown


def images_of_other_splits(path: Path, finder: FileFinder) -> list[Path]:
    """List the existing images that the files of the other splits beside a file name."""
    names: list[Any] = []
    for other in (path.with_name(name) for name in _SPLIT_FILES if name != path.name):
        if other.is_file():
            frames = read_json(other).get("frames")
            names += [entry.get("file_path") for entry in frames or () if isinstance(entry, dict)]
    return [image for name in names if isinstance(name, str) and (image := finder.find(name))]
