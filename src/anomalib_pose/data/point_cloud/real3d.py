# SPDX-License-Identifier: Apache-2.0
"""Real3D-AD as views of its clouds (Liu et al., NeurIPS 2023; Zhou et al., PointAD, NeurIPS 2024)."""

from pathlib import Path
from typing import Any

from anomalib_pose.data.point_cloud.datamodule import CloudDataModule


class Real3DADRendered(CloudDataModule):
    """Real3D-AD in the layout that PointAD published, as ``anomalib-pose render-clouds --dataset real3d`` writes it.

    ``<root>/<category>/test/good`` and ``test/anomaly`` have ``2d_rendering``, ``2d_gt``, ``2d_3d_cor`` and
    ``gt_pcd``. There are no photographs: ``image`` is one of the views. Neighboring cells of the grid are not neighbors
    in space (``organized`` is False).

    One-vs-rest: train on the labeled test part of ``train_category``, test on another category. Cross-dataset: give
    the other data set's folder as ``train_root``; it may be raw MVTec 3D-AD. The training category is never tested on.

    The data set is not downloaded: its authors offer it at https://github.com/M-3LAB/Real3D-AD. Its categories are
    airplane, car, candybar, chicken, diamond, duck, fish, gemstone, seahorse, shell, starfish and toffees.

    See ``CloudDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all categories except the training category.
        train_category: category to train on (the paper's: seahorse, shell, starfish), or None to test only.

    Raises:
        ValueError: if the training category is also the tested one, or ``val_split_mode`` is invalid.

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
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, category, train_category, *args, **kwargs)
