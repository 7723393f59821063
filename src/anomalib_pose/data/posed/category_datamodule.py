# SPDX-License-Identifier: Apache-2.0
"""Base of the datamodules of data sets with one folder for each object."""

import logging
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from anomalib.data.utils import LabelName, Split
from anomalib.utils.path import resolve_dataset_root

from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.listing import data_folders
from anomalib_pose.data.posed.datamodule import PosedDataModule, frames_with_masks, labeled_images, read_true_poses
from anomalib_pose.data.posed.dataset import PosedDataset, PosedSample, query_frame
from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.data.posed.transforms_json import PosedFrame

logger = logging.getLogger(__name__)


class CategoryDataModule(PosedDataModule):
    """Datamodule of ``<root>/<category>`` with ``test``, ``ground_truth`` and posed training images.

    Queries come with the training camera's intrinsics, scaled to their size, and without poses. True poses are read
    from ``<category>/test_transforms.json`` or ``<root>/_hidden/<category>.json`` (OpenGL axes) where one of them
    exists. They become ``camera_to_world`` of the queries, which serves evaluation alone. Subclasses read the posed
    training images.

    See ``PosedDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: folder of one object.
        image_size: longer side of the images in pixels; None to keep the stored size. Image, masks and intrinsics
            are resized together. Portrait and landscape images of one set are padded to one size.

    Raises:
        ValueError: if ``val_split_mode`` is invalid.
    """

    dataset_name: ClassVar[str]
    """Name of the data set, and of its folder where ``root`` is None."""
    source: ClassVar[str]
    """Where to download the data set."""
    markers: ClassVar[tuple[str, ...]] = ("transforms.json", "transforms_train.json")
    """Files or folders that mark a category. A category has one of them or more."""
    mask_suffixes: ClassVar[tuple[str, ...]] = ("_mask", "")
    """Endings that a mask's name adds to the name of its image, preferred first."""

    def __init__(
        self, root: Path | str | None, category: str, image_size: int | None = None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.root = Path(resolve_dataset_root(root, self.dataset_name))
        self.category = category
        self.image_size = image_size

    @abstractmethod
    def _training_frames(self, folder: Path) -> list[PosedFrame]:
        """Read the posed training images of a category's folder."""

    def prepare_data(self) -> None:
        """Check that the category exists.

        Raises:
            FileNotFoundError: if the root does not exist.
            ValueError: if the category does not exist; the message lists the existing categories.
        """
        if not self.root.is_dir():
            msg = (
                f"There is no folder {self.root}: download {self.dataset_name.split('-')[0]} from {self.source} and "
                "give the folder with its categories as root."
            )
            raise FileNotFoundError(msg)
        if not self.category or not (self.root / self.category).is_dir():
            children = data_folders(self.root)
            categories = [path.name for path in children if any((path / marker).exists() for marker in self.markers)]
            msg = (
                f"There is no category {self.category!r} in {self.root}; there are: {', '.join(categories) or 'none'}."
            )
            raise ValueError(msg)

    def _setup(self, _stage: str | None = None) -> None:
        """Read training poses, test images, masks, and the true poses of test images where a file has them."""
        self.prepare_data()
        folder = self.root / self.category
        frames = frames_with_masks(self._training_frames(folder))
        query_format = QueryFormat.of_frames(frames, self.image_size)
        true_poses = read_true_poses(folder)
        queries = []
        for image, label, mask in labeled_images(folder / "test", folder / "ground_truth", self.mask_suffixes):
            frame = query_frame(image, *image_size(image), query_format)
            pose = true_poses.get(PurePosixPath(image.relative_to(folder).as_posix()))
            queries.append(PosedSample(replace(frame, camera_to_world=pose), label, mask))
        unposed = sum(query.frame.camera_to_world is None for query in queries)
        if true_poses and unposed:
            logger.warning("%d of %d test images of %s have no true pose.", unposed, len(queries), folder)
        training = [PosedSample(frame, LabelName.NORMAL) for frame in frames]
        self.train_data = PosedDataset(training, Split.TRAIN, query_format)
        self.test_data = PosedDataset(queries, Split.TEST, query_format)
