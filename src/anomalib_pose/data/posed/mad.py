# SPDX-License-Identifier: Apache-2.0
"""MAD: 3D toys, posed training views, queries from unknown poses (Zhou et al., PAD, NeurIPS 2023)."""

from pathlib import Path
from typing import Any

from anomalib_pose.data.posed.category_datamodule import CategoryDataModule
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms


class MAD(CategoryDataModule):
    """MAD-Sim, MAD-Real with a ``transforms.json`` of your own, and any data set in their layout.

    ``<root>/<category>`` holds ``transforms.json`` (training poses, OpenGL axes), ``train/good``, ``test/good``,
    ``test/<defect>`` and ``ground_truth/<defect>/<name>_mask.png``. Queries come with the training camera's
    intrinsics and without poses. True poses are read from ``<category>/test_transforms.json`` or
    ``<root>/_hidden/<category>.json`` where one of them exists. They become ``camera_to_world`` of the queries, which
    serves evaluation alone.

    The data set is not downloaded: its authors offer it at https://github.com/EricLee0224/PAD (CC BY-NC-SA 4.0).

    See ``CategoryDataModule`` and ``PosedDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: folder of one object, for example ``01Gorilla``.

    Raises:
        ValueError: if ``val_split_mode`` is invalid.

    Example:
        >>> datamodule = MAD(root="./datasets/MAD-Sim", category="01Gorilla", image_size=400)
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).camera_to_world.shape
        torch.Size([8, 4, 4])
    """

    dataset_name = "MAD-Sim"
    source = "https://github.com/EricLee0224/PAD"

    def __init__(
        self, root: Path | str | None = "./datasets/MAD-Sim", category: str = "01Gorilla", *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(root, category, *args, **kwargs)

    def _training_frames(self, folder: Path) -> list[PosedFrame]:
        return read_transforms(folder / "transforms.json")
