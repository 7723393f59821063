# SPDX-License-Identifier: Apache-2.0
"""MIP and MIP-Real: industrial parts, queries from unknown poses under other light (Yang et al., PIAD, CVPR 2025)."""

from pathlib import Path
from typing import Any, Literal, get_args

from anomalib_pose.data.posed.category_datamodule import CategoryDataModule
from anomalib_pose.data.posed.colmap import MODEL_FOLDERS, find_colmap, read_colmap
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms
from anomalib_pose.data.posed.transforms_split import find_transforms

Layout = Literal["auto", "synthetic", "colmap"]


class MIP(CategoryDataModule):
    """PIAD's data sets MIP and MIP-Real, and any data set in their layouts.

    Both have ``<root>/<category>/test/<type>`` with the queries and ``ground_truth/<type>/<name>.png`` with the masks,
    named like their images. A type is good if its name begins with ``good``, ``ok`` or ``normal``; see ``is_good``. For
    example, ``good_1`` and ``good_2`` are photographs of good parts under two illuminations. The layouts differ in the
    training images:

    * synthetic (MIP): ``transforms.json`` (OpenGL axes) with the images of ``train``;
    * colmap (MIP-Real): a COLMAP model in ``sparse/0``, with the images of ``images``; reading
      it needs the extra ``anomalib-pose[colmap]``. Photographs need not be square, and the two focal lengths may
      differ.

    Queries come with the training camera's intrinsics, scaled to their size, and without poses. True poses are read
    from ``<category>/test_transforms.json`` or ``<root>/_hidden/<category>.json`` (OpenGL axes) where one of them
    exists. They become ``camera_to_world`` of the queries, which serves evaluation alone.

    The data sets are not downloaded: their authors offer them with the paper (PIAD, CVPR 2025). The synthetic one has
    the categories Amphora, Axletree, Box, Can, Chain, Gear, Keyring, Motor, Parts, Picker, Section, Shaft, Spray_can,
    Spring, Sprockets and Teapot; the real one 01Valve to 14Bearing.

    See ``CategoryDataModule`` and ``PosedDataModule`` for the other arguments.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: folder of one object, for example ``Sprockets``, or ``01Valve``.
        layout: ``synthetic``, ``colmap``, or ``auto``: synthetic where there is a ``transforms.json``, else colmap.

    Raises:
        ValueError: if ``layout`` or ``val_split_mode`` is invalid.

    Example:
        >>> datamodule = MIP(root="./datasets/MIP", category="Sprockets", image_size=400)
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).camera_to_world.shape
        torch.Size([8, 4, 4])
    """

    dataset_name = "MIP"
    source = "the authors of PIAD (CVPR 2025)"
    markers = (*CategoryDataModule.markers, *MODEL_FOLDERS, "colmap/sparse")
    mask_suffixes = ("",)

    def __init__(
        self,
        root: Path | str | None = "./datasets/MIP",
        category: str = "Sprockets",
        layout: Layout = "auto",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, category, *args, **kwargs)
        if layout not in get_args(Layout):
            msg = f"layout should be one of {', '.join(get_args(Layout))}, got {layout!r}."
            raise ValueError(msg)
        self.layout = layout

    def _training_frames(self, folder: Path) -> list[PosedFrame]:
        transforms = folder / "transforms.json"
        if self.layout == "synthetic" or (self.layout == "auto" and find_transforms(folder) is not None):
            return read_transforms(transforms)
        model = find_colmap(folder)
        if self.layout == "auto" and model is None:
            msg = (
                f"There is neither {transforms} nor a COLMAP model in {folder / MODEL_FOLDERS[0]}: expected the poses "
                "of the training images in one of them."
            )
            raise FileNotFoundError(msg)
        return read_colmap(model or folder / MODEL_FOLDERS[0], folder / "images")
