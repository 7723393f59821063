# SPDX-License-Identifier: Apache-2.0
"""The shapes that queries are compared with: read from files, and encoded once."""

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor

from anomalib_pose.data.reference_views.files import find_reference_views, read_views
from anomalib_pose.data.reference_views.mesh_files import MESH_SUFFIXES, read_mesh
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape
from anomalib_pose.render.reference_views import render_reference_views

_KEPT_SHAPES = 8


def load_reference(path: str | Path) -> tuple[Tensor, Tensor]:
    """Views of a shape, RGB (V, 3, 256, 256) in [0, 1], and the coordinates of what their cells show (V, 32, 32, 3).

    Args:
        path: mesh, of which 20 views are drawn, or folder of rendered views in Looking3D's layout, as
            ``anomalib-pose render-views`` writes them.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no view in it.
        ImportError: if it is a mesh and trimesh is not installed.
        ValueError: if a file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        return read_views(find_reference_views(path))
    views = list(render_reference_views(read_mesh(path)))
    images = torch.stack([view.gray for view in views]).float()
    return images[:, None].expand(-1, 3, -1, -1).contiguous(), torch.stack([view.xyz for view in views]).float()


class EncodedShapes:
    """Compact shapes as a network encodes them, each encoded once as long as it is among the last ones used.

    Args:
        network: in evaluation mode when it encodes.
    """

    def __init__(self, network: Looking3DModel) -> None:
        self.network = network
        self._shapes: OrderedDict[Hashable, ReferenceShape] = OrderedDict()

    def clear(self) -> None:
        """Forget all of them."""
        self._shapes.clear()

    @torch.no_grad()
    def encode(self, views: Tensor, xyz: Tensor) -> ReferenceShape:
        """A shape. Its views are encoded one after the other: more at once would not be faster on a CPU.

        Args:
            views: RGB (V, 3, 256, 256) in [0, 1].
            xyz: coordinates of what their cells show (V, 32, 32, 3).
        """
        network = self.network
        device = next(network.parameters()).device
        features = torch.cat([network.encoder(network.normalize(view[None].to(device))) for view in views])
        whole = network.reference(views[None].to(device), xyz[None].to(device), features[None])
        return whole.compact(network.topk)

    def encode_file(self, path: str | Path) -> ReferenceShape:
        """The shape of a mesh or of a folder of rendered views.

        Args:
            path: see ``load_reference``, which raises the same errors.
        """
        return self.encode(*load_reference(path))

    def of_views(self, name: str | None, views: Tensor, xyz: Tensor) -> ReferenceShape:
        """The shape of a query.

        Args:
            name: of the shape, or None if it has none and is not kept.
            views: see ``encode``.
            xyz: see ``encode``.
        """
        if name is None:
            return self.encode(views, xyz)
        return self._kept(("shape", name)) or self._keep(("shape", name), self.encode(views, xyz))

    def of_file(self, path: str | Path) -> ReferenceShape:
        """The shape of a mesh or of a folder, as ``encode_file`` gives it.

        Args:
            path: see ``encode_file``.
        """
        key = ("file", str(path))
        return self._kept(key) or self._keep(key, self.encode_file(path))

    def _kept(self, key: Hashable) -> ReferenceShape | None:
        if key in self._shapes:
            self._shapes.move_to_end(key)
        return self._shapes.get(key)

    def _keep(self, key: Hashable, shape: ReferenceShape) -> ReferenceShape:
        self._shapes[key] = shape
        if len(self._shapes) > _KEPT_SHAPES:
            self._shapes.popitem(last=False)
        return shape
