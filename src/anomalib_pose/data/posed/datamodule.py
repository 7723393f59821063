# SPDX-License-Identifier: Apache-2.0
"""Base of the datamodules of posed images, and readers of their test folders: labels, masks and true poses."""

import logging
from collections.abc import Sequence
from itertools import compress
from pathlib import Path, PurePosixPath

from anomalib.data.utils import LabelName
from torch import Tensor

from anomalib_pose.data.files import read_json
from anomalib_pose.data.fixed_test_datamodule import FixedTestDataModule, ValSplit
from anomalib_pose.data.listing import data_folders, first_names, image_files, is_good, warn_without_good
from anomalib_pose.data.masks import check_mask_size, images_with_masks
from anomalib_pose.data.posed.dataset import PosedDataset
from anomalib_pose.data.posed.pose_files import FileFinder
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_pose

logger = logging.getLogger(__name__)

_NAMES = 5


class PosedDataModule(FixedTestDataModule):
    """Datamodule of posed images, which are resized together with their intrinsics.

    Args:
        train_batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and prediction.
        num_workers: processes that load images.
        val_split_mode: images that set the thresholds: ``same_as_test``, ``from_test`` (images that are
            removed from the test set) or ``from_train`` (good images that are removed from the training set).
        val_split_ratio: fraction of the images that ``from_test`` and ``from_train`` take.
        seed: makes the choice of these images repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is invalid.
    """

    train_data: PosedDataset
    val_data: PosedDataset
    test_data: PosedDataset

    def __init__(
        self,
        train_batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        val_split_mode: ValSplit = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)


def frames_with_masks(frames: Sequence[PosedFrame]) -> list[PosedFrame]:
    """Return the frames to fit a scene to: all, or those with a mask of the object if up to a third have none.

    Raises:
        ValueError: if more than a third of the frames, but not all, have no mask.
    """
    return list(compress(frames, images_with_masks([(frame.image_path, frame.mask_path) for frame in frames])))


def labeled_images(
    folder: Path, mask_folder: Path | None, mask_suffixes: Sequence[str] = ("_mask", "")
) -> list[tuple[Path, LabelName, Path | None]]:
    """List the images in the subfolders of a test folder, with their labels and masks.

    A subfolder is normal if ``is_good`` says so of its name. The mask of
    ``<folder>/<kind>/<name>.png`` is ``<mask_folder>/<kind>/<name><suffix>.png`` with one of the suffixes.

    Args:
        folder: folder with one subfolder for each kind of image.
        mask_folder: folder with one subfolder for each kind of defect; None if there are no masks.
        mask_suffixes: endings that a mask's name adds to the name of its image; the first existing mask is taken.

    Raises:
        FileNotFoundError: if a folder or a mask is missing, or there is no image.
        ValueError: if a mask has no image, or differs from its image in size.
    """
    if not folder.is_dir():
        msg = f"There is no folder {folder}: expected subfolders 'good' and one for each kind of defect in it."
        raise FileNotFoundError(msg)
    kinds = {path: image_files(path) for path in data_folders(folder) if path != mask_folder}
    _report_ignored(folder, kinds)
    if not any(kinds.values()):
        msg = f"There are no test images in {folder}: expected images in its subfolders 'good' and kinds of defects."
        raise FileNotFoundError(msg)
    warn_without_good(folder, [kind for kind, images in kinds.items() if images])
    labeled: list[tuple[Path, LabelName, Path | None]] = []
    for kind, images in kinds.items():
        if is_good(kind.name):
            labeled += [(image, LabelName.NORMAL, None) for image in images]
            continue
        masks = _match_masks(kind, images, mask_folder, mask_suffixes)
        labeled += [(image, LabelName.ABNORMAL, masks.get(image)) for image in images]
    if mask_folder is not None:
        _check_mask_folders(folder, mask_folder)
    return labeled


def read_true_poses(folder: Path) -> dict[PurePosixPath, Tensor]:
    """Read the true poses (4, 4) of test images, OpenCV axes, by image path relative to the object's folder.

    The file is ``<folder>/test_transforms.json``, ``<folder>/transforms_test.json``, or ``_hidden/<name>.json`` beside
    the folder. Without a file the result is empty. ``FileFinder`` describes the names of images.

    Args:
        folder: folder of one object.

    Raises:
        ValueError: if the file has no list of images with poses, or a pose is not rigid.
    """
    in_folder = (folder / name for name in ("test_transforms.json", "transforms_test.json"))
    candidates = (*in_folder, folder.parent / "_hidden" / f"{folder.name}.json")
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return {}
    content = read_json(path)
    entries = content.get("images", content.get("frames"))
    if not isinstance(entries, list):
        msg = f"{path} should have a list 'images' of objects with 'file' and 'transform_matrix'."
        raise ValueError(msg)  # noqa: TRY004
    poses, finder = {}, FileFinder(folder)
    for entry in entries:
        name = entry.get("file", entry.get("file_path")) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            msg = f"{path} has an entry without 'file': expected the path of a test image in the category."
            raise ValueError(msg)  # noqa: TRY004
        image = finder.find(name)
        file = PurePosixPath(image.relative_to(folder)) if image and image.is_relative_to(folder) else name
        poses[PurePosixPath(file)] = read_pose(entry.get("transform_matrix"), f"{path}, image {name!r},")
    return poses


def _report_ignored(folder: Path, kinds: dict[Path, list[Path]]) -> None:
    """Log one line about images beside or below the subfolders of kinds, and about subfolders without images."""
    ignored = image_files(folder) + [kind for kind, images in kinds.items() if not images]
    below = [child for kind in kinds if not kind.is_symlink() for child in data_folders(kind) if not child.is_symlink()]
    ignored += [child for child in below if image_files(child)]
    if ignored and any(kinds.values()):
        names = first_names([path.relative_to(folder).as_posix() for path in ignored], _NAMES)
        logger.warning(
            "%s has images or empty subfolders that are ignored, because images should lie in its subfolders of "
            "kinds: %s.", folder, names,
        )  # fmt: skip


def _match_masks(kind: Path, images: list[Path], mask_folder: Path | None, suffixes: Sequence[str]) -> dict[Path, Path]:
    """Return the mask of each image of a kind of defect."""
    if mask_folder is None:
        return {}
    folder = mask_folder / kind.name
    if images and not folder.is_dir():
        msg = f"The images of {kind} have no masks: expected them in {folder}."
        raise FileNotFoundError(msg)
    files = image_files(folder)
    masks = {path.stem: path for path in reversed(files)}
    names = {image: [image.stem + suffix for suffix in suffixes if image.stem + suffix in masks] for image in images}
    for image in images:
        _check_unique(image, [path for path in files if path.stem in names[image]])
    missing = [image for image in images if not names[image]]
    if missing:
        msg = f"The image {missing[0]} has no mask: expected {folder / (missing[0].stem + suffixes[0] + '.png')}."
        if len(missing) > 1:
            msg += f" {len(missing)} of {len(images)} images in {kind} have none."
        raise FileNotFoundError(msg)
    matched = {image: masks[names[image][0]] for image in images}
    first: dict[Path, Path] = {}
    for image, mask in matched.items():
        check_mask_size(mask, image)
        if first.setdefault(mask, image) != image:
            logger.warning("The images %s and %s have one mask, %s.", first[mask], image.name, mask)
    unmatched = sorted(set(masks.values()) - set(matched.values()))
    if unmatched:
        msg = f"The mask {unmatched[0]} has no image in {kind}: add the image, or remove the mask."
        raise ValueError(msg)
    return matched


def _check_unique(image: Path, masks: list[Path]) -> None:
    """Check that an image has one mask.

    Raises:
        ValueError: if it has several.
    """
    if len(masks) > 1:
        msg = f"The image {image} has {len(masks)} masks, {masks[0]} and {masks[1].name}: remove all but one."
        raise ValueError(msg)


def _check_mask_folders(folder: Path, mask_folder: Path) -> None:
    """Check that each folder of masks belongs to a folder of images."""
    for kind in data_folders(mask_folder):
        masks = image_files(kind)
        if masks and not is_good(kind.name) and not (folder / kind.name).is_dir():
            msg = f"The mask {masks[0]} has no image: there is no folder {folder / kind.name}."
            raise ValueError(msg)
