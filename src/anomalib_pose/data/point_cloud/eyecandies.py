# SPDX-License-Identifier: Apache-2.0
"""Eyecandies as views of its clouds (Bonfiglioli et al., ACCV 2022; Zhou et al., PointAD, NeurIPS 2024)."""

from pathlib import Path
from typing import Any

from anomalib_pose.data.point_cloud.datamodule import CloudDataModule


class EyecandiesRendered(CloudDataModule):
    """Eyecandies in the layout that PointAD published.

    ``anomalib-pose render-clouds --dataset eyecandies`` writes this layout.

    ``<root>/<category>/test/good`` and ``test/anomaly`` have ``2d_rendering``, ``2d_gt``, ``2d_3d_cor``, ``xyz``,
    ``rgb`` and ``gt``.

    One-vs-rest: train on the labeled test part of ``train_category``, test on another category. Cross-dataset: give
    the other data set's folder as ``train_root``; it may be raw MVTec 3D-AD. The training category is never tested on.

    The data set is not downloaded: its authors offer it at https://eyecan-ai.github.io/eyecandies. Its categories are
    CandyCane, ChocolateCookie, ChocolatePraline, Confetto, GummyBear, HazelnutTruffle, LicoriceSandwich, Lollipop,
    Marshmallow and PeppermintCandy.

    See ``CloudDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all categories except the training category.
        train_category: category to train on (the paper's: PeppermintCandy, LicoriceSandwich, Confetto), or None to test
            only.

    Raises:
        ValueError: if the training category is also the tested one, or ``val_split_mode`` is invalid.

    Example:
        >>> datamodule = EyecandiesRendered(root="./datasets/eyecandies", category="Lollipop")
        >>> datamodule.setup()
        >>> next(iter(datamodule.test_dataloader())).views.shape
        torch.Size([1, 9, 3, 336, 336])
    """

    dataset_name = "eyecandies"
    source = "https://eyecan-ai.github.io/eyecandies"

    def __init__(
        self,
        root: Path | str | None = "./datasets/eyecandies",
        category: str = "CandyCane",
        train_category: str | None = "Confetto",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, category, train_category, *args, **kwargs)
