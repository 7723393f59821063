# SPDX-License-Identifier: Apache-2.0
"""MVTec 3D-AD as views of its clouds (Bergmann et al., VISAPP 2022; Zhou et al., PointAD, NeurIPS 2024)."""

from pathlib import Path
from typing import Any

from anomalib_pose.data.point_cloud.datamodule import CloudDataModule
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings


class MVTec3DRendered(CloudDataModule):
    """MVTec 3D-AD, raw or rendered, and any data set in either layout.

    Raw is ``<root>/<category>/test/<kind>`` with ``rgb``, ``xyz`` and ``gt``. Loading a raw cloud removes the plane
    below the object and renders the object, in a fraction of a second. ``cache_dir`` stores the renderings.
    ``anomalib-pose render-clouds`` writes the layout that PointAD published. Folders ``2d_rendering`` identify it.

    One-vs-rest: train on the labeled test part of ``train_category``, test on another category. Cross-dataset: give
    the other data set's folder as ``train_root``. The training category is never tested on.

    The data set is not downloaded: its owner offers it at https://www.mvtec.com/company/research/datasets/mvtec-3d-ad
    (CC BY-NC-SA 4.0). Its categories are bagel, cable_gland, carrot, cookie, dowel, foam, peach, potato, rope, tire.

    See ``CloudDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all categories except the training category.
        train_category: category to train on (the paper's: cookie, carrot, dowel), or None to test only.
        train_root: folder of the data set of the training category; None for ``root``.
        views: views of each cloud, 5, 9 or 11.
        size: width and height of views and photographs in pixels.
        point_size: side of a point's square in pixels of a window of 1024; None to choose it so that no holes show.
        depth_tolerance: points up to this distance behind the nearest point of their pixel are visible too, in meters;
            None for the paper's rule, the nearest point alone.
        cache_dir: folder that stores rendered clouds; None to render them each time.

    Raises:
        ValueError: if the training category is also the tested one, or ``views`` or ``val_split_mode`` is invalid.

    Example:
        >>> datamodule = MVTec3DRendered(root="./datasets/mvtec_3d", category="bagel", train_category="carrot")
        >>> datamodule.setup()
        >>> next(iter(datamodule.test_dataloader())).views.shape
        torch.Size([1, 9, 3, 336, 336])
    """

    dataset_name = "mvtec_3d"
    source = "https://www.mvtec.com/company/research/datasets/mvtec-3d-ad"

    def __init__(
        self,
        root: Path | str | None = "./datasets/mvtec_3d",
        category: str = "bagel",
        train_category: str | None = "carrot",
        train_root: Path | str | None = None,
        views: int = 9,
        size: int = 336,
        point_size: float | None = None,
        depth_tolerance: float | None = None,
        cache_dir: Path | str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, category, train_category, train_root, size, *args, **kwargs)
        self.settings = RenderSettings.of_views(views, size, point_size=point_size, depth_tolerance=depth_tolerance)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
