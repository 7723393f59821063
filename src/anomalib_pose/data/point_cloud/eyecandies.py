# SPDX-License-Identifier: Apache-2.0
"""Eyecandies as views of its clouds (Bonfiglioli et al., ACCV 2022; Zhou et al., PointAD, NeurIPS 2024)."""

from pathlib import Path

from anomalib_pose.data.point_cloud.datamodule import CloudDataModule
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings


class EyecandiesRendered(CloudDataModule):
    """Eyecandies in the layout that PointAD published, as ``tools/render_clouds.py --dataset eyecandies`` writes it.

    ``<root>/<category>/test/good`` and ``test/anomaly`` have ``2d_rendering``, ``2d_gt``, ``2d_3d_cor``, ``xyz``,
    ``rgb`` and ``gt``.

    One-vs-rest: train on the labeled test part of ``train_category``, test on another one. Cross-dataset: name the
    other data set's folder as ``train_root``; it may be raw MVTec 3D-AD. The training category is never tested on.

    The data set is not downloaded: its authors offer it at https://eyecan-ai.github.io/eyecandies. Its categories are
    CandyCane, ChocolateCookie, ChocolatePraline, Confetto, GummyBear, HazelnutTruffle, LicoriceSandwich, Lollipop,
    Marshmallow and PeppermintCandy.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all but the training category.
        train_category: category to train on (the paper's: PeppermintCandy, LicoriceSandwich, Confetto), or None to test
            only.
        train_root: folder of the data set of the training category; None for ``root``.
        size: width and height of the views in pixels.
        train_batch_size: clouds in a training batch.
        eval_batch_size: clouds in a batch of validation, test and prediction.
        num_workers: processes that load clouds.
        val_split_mode: what thresholds are chosen on: ``same_as_test``, ``from_test`` (a part of the test set, which
            loses it) or ``from_train`` (a part of the training category, which loses it).
        val_split_ratio: share of the clouds that ``from_test`` and ``from_train`` take.
        seed: makes that choice repeatable.

    Raises:
        ValueError: if the training category is the tested one, or ``val_split_mode`` is another.

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
        train_root: Path | str | None = None,
        size: int = 336,
        train_batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        val_split_mode: str = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            root,
            category,
            train_category,
            train_root,
            RenderSettings(size),
            None,
            train_batch_size,
            eval_batch_size,
            num_workers,
            val_split_mode,
            val_split_ratio,
            seed,
        )
