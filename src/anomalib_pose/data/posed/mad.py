# SPDX-License-Identifier: Apache-2.0
"""MAD: 3D toys, posed training views, queries from unknown poses (Zhou et al., PAD, NeurIPS 2023)."""

from pathlib import Path

from anomalib_pose.data.posed.category_datamodule import CategoryDataModule
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms


class MAD(CategoryDataModule):
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

    dataset_name = "MAD-Sim"
    source = "https://github.com/EricLee0224/PAD"

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
        super().__init__(
            root,
            category,
            image_size,
            train_batch_size,
            eval_batch_size,
            num_workers,
            val_split_mode,
            val_split_ratio,
            seed,
        )

    def _training_frames(self, folder: Path) -> list[PosedFrame]:
        return read_transforms(folder / "transforms.json")
