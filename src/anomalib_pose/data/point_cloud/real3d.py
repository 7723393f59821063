# SPDX-License-Identifier: Apache-2.0
"""Real3D-AD as views of its clouds (Liu et al., NeurIPS 2023; Zhou et al., PointAD, NeurIPS 2024)."""

from pathlib import Path

from anomalib_pose.data.point_cloud.datamodule import CloudDataModule
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings


class Real3DADRendered(CloudDataModule):
    """Real3D-AD in the layout that PointAD published, as ``tools/render_clouds.py --dataset real3d`` writes it.

    ``<root>/<category>/test/good`` and ``test/anomaly`` have ``2d_rendering``, ``2d_gt``, ``2d_3d_cor`` and
    ``gt_pcd``. There are no photographs: ``image`` is one of the views. Cells of the grid are no neighbors in space
    (``organized`` is False).

    One-vs-rest: train on the labeled test part of ``train_category``, test on another one. Cross-dataset: name the
    other data set's folder as ``train_root``; it may be raw MVTec 3D-AD. The training category is never tested on.

    The data set is not downloaded: its authors offer it at https://github.com/M-3LAB/Real3D-AD. Its categories are
    airplane, car, candybar, chicken, diamond, duck, fish, gemstone, seahorse, shell, starfish and toffees.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all but the training category.
        train_category: category to train on (the paper's: seahorse, shell, starfish), or None to test only.
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
        >>> datamodule = Real3DADRendered(root="./datasets/real3d", category="airplane", train_category="seahorse")
        >>> datamodule.setup()
        >>> next(iter(datamodule.test_dataloader())).views.shape
        torch.Size([1, 9, 3, 336, 336])
    """

    dataset_name = "real3d"
    source = "https://github.com/M-3LAB/Real3D-AD"

    def __init__(
        self,
        root: Path | str | None = "./datasets/real3d",
        category: str = "airplane",
        train_category: str | None = "seahorse",
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
