# SPDX-License-Identifier: Apache-2.0
"""MAD: 3D toys, posed training views, queries from unknown poses (Zhou et al., PAD, NeurIPS 2023)."""

import logging
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anomalib.data.utils import LabelName, Split
from anomalib.utils.path import resolve_dataset_root
from torch import Tensor

from anomalib_pose.data.images import image_size
from anomalib_pose.data.posed_datamodule import PosedDataModule, labelled_images
from anomalib_pose.data.posed_dataset import PosedDataset, PosedSample, common_size, query_frame
from anomalib_pose.data.transforms_json import read_json, read_pose, read_transforms

logger = logging.getLogger(__name__)


class MAD(PosedDataModule):
    """MAD-Sim, MAD-Real with a ``transforms.json`` of one's own, and anything in their layout.

    ``<root>/<category>`` holds ``transforms.json`` (training poses, OpenGL axes), ``train/good``, ``test/good``,
    ``test/<defect>`` and ``ground_truth/<defect>/<name>_mask.png``. Queries come with the training camera's
    intrinsics and without poses. True poses, where someone has written them to ``<category>/test_transforms.json`` or
    ``<root>/_hidden/<category>.json``, are given as ``camera_to_world`` of the queries for evaluation alone.

    The data set is not downloaded: its authors offer it at https://github.com/EricLee0224/PAD (CC BY-NC-SA 4.0).

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: folder of one object, for example ``01Gorilla``.
        image_size: longer side of the images given, pixels; None to keep the stored size. Image, masks and intrinsics
            are resized together.
        train_batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and prediction.
        num_workers: processes that load images.
        val_split_mode: what thresholds are chosen on: ``same_as_test``, ``from_test`` (a part of the test set, which
            loses it) or ``from_train`` (good images alone, which the training set loses).
        val_split_ratio: share of the images that ``from_test`` and ``from_train`` take.
        seed: makes that choice repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is another.

    Example:
        >>> datamodule = MAD(root="./datasets/MAD-Sim", category="01Gorilla", image_size=400)
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).camera_to_world.shape
        torch.Size([8, 4, 4])
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/MAD-Sim",
        category: str = "01Gorilla",
        image_size: int | None = None,
        train_batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        val_split_mode: str = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)
        self.root = Path(resolve_dataset_root(root, "MAD-Sim"))
        self.category = category
        self.image_size = image_size

    def prepare_data(self) -> None:
        """Check that the category is there.

        Raises:
            FileNotFoundError: if the root is not there.
            ValueError: if the category is not; those that are there are listed.
        """
        if not self.root.is_dir():
            msg = (
                f"There is no folder {self.root}: download MAD from https://github.com/EricLee0224/PAD and give the "
                "folder with its categories as root."
            )
            raise FileNotFoundError(msg)
        if not self.category or not (self.root / self.category).is_dir():
            found = sorted(path.parent.name for path in self.root.glob("*/transforms.json"))
            msg = f"There is no category {self.category!r} in {self.root}; there are: {', '.join(found) or 'none'}."
            raise ValueError(msg)

    def _setup(self, _stage: str | None = None) -> None:
        """Read training poses, test images, masks, and true poses where they are known."""
        self.prepare_data()
        folder = self.root / self.category
        frames = read_transforms(folder / "transforms.json")
        size = common_size(frames, self.image_size)
        truth = self._true_poses()
        queries = []
        for image, label, mask in labelled_images(folder / "test", folder / "ground_truth"):
            frame = query_frame(image, *image_size(image), like=frames[0])
            pose = truth.get(PurePosixPath(image.relative_to(folder).as_posix()))
            queries.append(PosedSample(replace(frame, camera_to_world=pose), label, mask))
        unposed = sum(query.frame.camera_to_world is None for query in queries)
        if truth and unposed:
            logger.warning("%d of %d test images of %s have no true pose.", unposed, len(queries), folder)
        training = [PosedSample(frame, LabelName.NORMAL) for frame in frames]
        self.train_data = PosedDataset(training, Split.TRAIN, size)
        self.test_data = PosedDataset(queries, Split.TEST, size)

    def _true_poses(self) -> dict[PurePosixPath, Tensor]:
        """Poses of test images by path inside the category, OpenCV axes; empty if nobody knows them."""
        candidates = (
            self.root / self.category / "test_transforms.json",
            self.root / "_hidden" / f"{self.category}.json",
        )
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            return {}
        content = read_json(path)
        entries = content.get("images", content.get("frames"))
        if not isinstance(entries, list):
            msg = f"{path} should have a list 'images' of objects with 'file' and 'transform_matrix'."
            raise ValueError(msg)  # noqa: TRY004
        poses = {}
        for entry in entries:
            name = entry.get("file", entry.get("file_path")) if isinstance(entry, dict) else None
            if not isinstance(name, str):
                msg = f"{path} has an entry without 'file': expected the path of a test image in the category."
                raise ValueError(msg)  # noqa: TRY004
            poses[PurePosixPath(name)] = read_pose(entry.get("transform_matrix"), f"{path}, image {name!r},")
        return poses
