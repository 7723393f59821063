# SPDX-License-Identifier: Apache-2.0
"""Training views that a model collects in its only epoch, for the fit at its end."""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from anomalib_pose.data.batches import known_mask
from anomalib_pose.data.masks import all_with_masks
from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.geometry import Camera


@dataclass(frozen=True)
class CollectedView:
    """One training view on the CPU.

    Args:
        image: RGB (3, H, W) in [0, 1].
        camera_to_world: pose (4, 4), float64.
        K: intrinsics (3, 3) in pixels.
        foreground: mask of the object (H, W), or None.
        name: file of the image, for messages.
    """

    image: Tensor
    camera_to_world: Tensor
    K: Tensor
    foreground: Tensor | None
    name: str


def _position(view: CollectedView) -> list[float]:
    """Return the sort key of a view: its rotation, then its place, in float32, in which loaders may return poses."""
    pose = view.camera_to_world.float()
    return [*pose[:3, :3].flatten().tolist(), *pose[:3, 3].tolist()]


class ViewCollection:
    """Training views in the order in which a loader returned them."""

    def __init__(self) -> None:
        self.views: list[CollectedView] = []

    def __len__(self) -> int:
        """Number of views."""
        return len(self.views)

    def add(self, batch: PoseBatch) -> None:
        """Add the views of a batch that has poses and intrinsics."""
        poses, intrinsics = batch.camera_to_world, batch.intrinsics
        if poses is None or intrinsics is None:
            return
        paths = batch.image_path or [f"view {len(self) + index}" for index in range(len(batch.image))]
        with torch.inference_mode(mode=False):
            for index, image in enumerate(batch.image):
                mask = known_mask(batch.foreground, index)
                view = CollectedView(
                    image.detach().cpu().clone(),
                    poses[index].detach().cpu().double().clone(),
                    intrinsics[index].detach().cpu().clone(),
                    None if mask is None else mask.detach().cpu().clone(),
                    str(paths[index]),
                )
                self.views.append(view)

    def stack(self, device: torch.device) -> tuple[Tensor, Camera, Tensor | None]:
        """Return images (C, 3, H, W), cameras with float64 poses, and masks (C, H, W) if views have one.

        Of views with masks, up to a third may have none, as a photograph that is opaque everywhere; they are left out
        and reported. The order depends on the poses alone, because a loader shuffles.

        Args:
            device: device of the result.

        Raises:
            ValueError: if the sizes of the views differ, or more than a third of the views, but not all, have no mask.
        """
        views = sorted(self.views, key=_position)
        used = all_with_masks([view.foreground is not None for view in views], [Path(view.name) for view in views])
        views = list(compress(views, used))
        sizes = sorted({tuple(view.image.shape[-2:]) for view in views})
        if len(sizes) > 1:
            msg = f"All training views should have one size, got (height, width) {sizes}: set image_size of the data."
            raise ValueError(msg)
        poses = torch.stack([view.camera_to_world for view in views])
        cameras = Camera(poses, torch.stack([view.K for view in views]), sizes[0][1], sizes[0][0])
        masks = [view.foreground for view in views if view.foreground is not None]
        foreground = torch.stack(masks).to(device) if masks else None
        return torch.stack([view.image for view in views]).to(device), cameras.to(device), foreground
