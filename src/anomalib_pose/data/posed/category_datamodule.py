# SPDX-License-Identifier: Apache-2.0
"""What the datamodules of data sets with one folder for each object share."""

import logging
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from anomalib.data.utils import LabelName, Split
from anomalib.utils.path import resolve_dataset_root

from anomalib_pose.data.images import image_size
from anomalib_pose.data.posed.datamodule import PosedDataModule, labeled_images, true_poses
from anomalib_pose.data.posed.dataset import PosedDataset, PosedSample, common_camera, common_size, query_frame
from anomalib_pose.data.posed.transforms_json import PosedFrame

logger = logging.getLogger(__name__)


class CategoryDataModule(PosedDataModule):
    """Datamodule of ``<root>/<category>`` with ``test``, ``ground_truth`` and posed training images.

    Queries are seen by the training images' camera. A subclass says where the training images are.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: folder of one object.
        image_size: longer side of the images given, pixels; None to keep the stored size.
        train_batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and prediction.
        num_workers: processes that load images.
        val_split_mode: ``same_as_test``, ``from_test`` or ``from_train``.
        val_split_ratio: share of the images that ``from_test`` and ``from_train`` take.
        seed: makes that choice repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is another.
    """

    dataset_name: ClassVar[str]
    """Name of the data set, which is also its folder's where no root is given."""
    source: ClassVar[str]
    """Where the data set can be had."""
    markers: ClassVar[tuple[str, ...]] = ("transforms.json",)
    """Files or folders of which a category has one."""
    mask_suffixes: ClassVar[tuple[str, ...]] = ("_mask", "")
    """What a mask's name has after that of its image."""

    def __init__(
        self,
        root: Path | str | None,
        category: str,
        image_size: int | None,
        train_batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        val_split_mode: str,
        val_split_ratio: float,
        seed: int | None,
    ) -> None:
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)
        self.root = Path(resolve_dataset_root(root, self.dataset_name))
        self.category = category
        self.image_size = image_size

    @abstractmethod
    def _training_frames(self, folder: Path) -> list[PosedFrame]:
        """Posed training images of the category's folder."""

    def prepare_data(self) -> None:
        """Check that the category is there.

        Raises:
            FileNotFoundError: if the root is not there.
            ValueError: if the category is not; those that are there are listed.
        """
        if not self.root.is_dir():
            msg = (
                f"There is no folder {self.root}: download {self.dataset_name.split('-')[0]} from {self.source} and "
                "give the folder with its categories as root."
            )
            raise FileNotFoundError(msg)
        if not self.category or not (self.root / self.category).is_dir():
            children = sorted(path for path in self.root.iterdir() if path.is_dir())
            found = [path.name for path in children if any((path / marker).exists() for marker in self.markers)]
            msg = f"There is no category {self.category!r} in {self.root}; there are: {', '.join(found) or 'none'}."
            raise ValueError(msg)

    def _setup(self, _stage: str | None = None) -> None:
        """Read training poses, test images, masks, and true poses where they are known."""
        self.prepare_data()
        folder = self.root / self.category
        frames = self._training_frames(folder)
        size = common_size(frames, self.image_size)
        camera = common_camera(frames, common_size(frames, None))
        truth = true_poses(folder)
        queries = []
        for image, label, mask in labeled_images(folder / "test", folder / "ground_truth", self.mask_suffixes):
            frame = query_frame(image, *image_size(image), like=camera)
            pose = truth.get(PurePosixPath(image.relative_to(folder).as_posix()))
            queries.append(PosedSample(replace(frame, camera_to_world=pose), label, mask))
        unposed = sum(query.frame.camera_to_world is None for query in queries)
        if truth and unposed:
            logger.warning("%d of %d test images of %s have no true pose.", unposed, len(queries), folder)
        training = [PosedSample(frame, LabelName.NORMAL) for frame in frames]
        self.train_data = PosedDataset(training, Split.TRAIN, size)
        self.test_data = PosedDataset(queries, Split.TEST, size)
