# SPDX-License-Identifier: Apache-2.0
"""Reference shapes: read from a mesh or from rendered views, and encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from anomalib_pose.data.reference_views.files import find_reference_views, read_views
from anomalib_pose.data.reference_views.mesh_files import MESH_SUFFIXES, read_mesh
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape
from anomalib_pose.progress import track
from anomalib_pose.render.reference_views import render_reference_views

_VIEWS = 20  # number of views that are rendered of a mesh
_CAPACITY = 8
"""Number of encoded shapes in memory."""


def load_reference(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read or render the views of a shape.

    Args:
        path: mesh, which is rendered from 20 sides; or folder of rendered views in Looking3D's layout, as
            ``anomalib-pose render-views`` writes them.

    Returns:
        Views, RGB (V, 3, 256, 256) in [0, 1]; and the surface coordinates of their cells in the frame of the mesh
        (V, 32, 32, 3), -1 where a cell is empty.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no view in the folder.
        ImportError: if the path is a mesh and trimesh is not installed.
        ValueError: if a file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        return read_views(find_reference_views(path))
    views = list(track(render_reference_views(read_mesh(path)), "Render reference views", _VIEWS))
    images = torch.stack([view.gray for view in views]).float()
    return images[:, None].expand(-1, 3, -1, -1).contiguous(), torch.stack([view.xyz for view in views]).float()


class EncodedShapes:
    """Cache of compact shapes, encoded by a network; the least recently used shape is dropped first.

    Args:
        network: network in evaluation mode, which encodes the shapes.
    """

    def __init__(self, network: Looking3DModel) -> None:
        self.network = network
        self._shapes: OrderedDict[Hashable, ReferenceShape] = OrderedDict()

    def clear(self) -> None:
        """Drop all shapes."""
        self._shapes.clear()

    @torch.no_grad()
    def encode(self, views: Tensor, xyz: Tensor) -> ReferenceShape:
        """Encode one shape, view by view: larger batches are not faster on a CPU.

        Args:
            views: RGB (V, 3, 256, 256) in [0, 1].
            xyz: surface coordinates of their cells (V, 32, 32, 3).
        """
        network = self.network
        device = next(network.parameters()).device
        features = torch.cat(
            [
                network.encoder(network.normalize(view[None].to(device)))
                for view in track(views, "Encode reference views")
            ]
        )
        whole = network.reference(views[None].to(device), xyz[None].to(device), features[None])
        return whole.compact(network.topk)

    def encode_file(self, path: str | Path) -> ReferenceShape:
        """Encode the shape of a mesh or of a folder of rendered views.

        Args:
            path: see ``load_reference``, which raises the same errors.
        """
        return self.encode(*load_reference(path))

    def of_views(self, name: str | None, views: Tensor, xyz: Tensor) -> ReferenceShape:
        """Return the shape of reference views; encode it at the first call.

        Args:
            name: name of the shape; None for a shape without a name, which is not cached.
            views: see ``encode``.
            xyz: see ``encode``.
        """
        if name is None:
            return self.encode(views, xyz)
        return self._cached(("shape", name), lambda: self.encode(views, xyz))

    def of_file(self, path: str | Path) -> ReferenceShape:
        """Return the shape of a mesh or of a folder of rendered views; encode it at the first call.

        Args:
            path: see ``encode_file``.
        """
        return self._cached(("file", str(path)), lambda: self.encode_file(path))

    def _cached(self, key: Hashable, encode: Callable[[], ReferenceShape]) -> ReferenceShape:
        """Return the shape of a key; encode it if it is not in the cache."""
        if key not in self._shapes:
            self._shapes[key] = encode()
        self._shapes.move_to_end(key)
        if len(self._shapes) > _CAPACITY:
            self._shapes.popitem(last=False)
        return self._shapes[key]
