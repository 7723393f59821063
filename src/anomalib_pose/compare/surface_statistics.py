# SPDX-License-Identifier: Apache-2.0
"""Residuals of normal views at each place of the object's surface."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PRIOR_PIXELS = 2.0
"""Number of pixels with the average residual that are added to each cell, so that cells in few views stay stable."""

_REACH = 1.3  # half the cube's side in radii of the object; a value of 1 would leave out the object's outermost parts
_MIN_OPACITY = 0.05  # opacity below which a pixel does not show the surface
_OPAQUE = 0.5


class SurfaceStatistics(nn.Module):
    r"""Divides the anomaly map of a query by the residuals that normal views have at the same surface points.

    Renderings are worse at gloss, at thin parts and at places in few training views, from every camera. The anomaly
    maps of normal views are collected in the cells of a cube around the object; :math:`e` is their root mean square. A
    query's map :math:`m` becomes

    .. math:: m / \max(1, e / \mathrm{median}(e))^s

    Places below the median keep their map: a defect is not more severe on a surface that is rendered well. Values are
    interpolated between the centers of the cells. Before ``fit``, maps do not change.

    Args:
        cells: number of cells along each side of the cube.
        strength: exponent s. Below 1 for queries in another light, whose gloss lies at other places.

    Raises:
        ValueError: if the strength is negative.
    """

    excess_square: Tensor
    corner: Tensor
    cell: Tensor

    def __init__(self, cells: int = 64, strength: float = 1.0) -> None:
        super().__init__()
        if strength < 0:
            msg = f"strength should not be negative, got {strength}."
            raise ValueError(msg)
        self.cells = cells
        self.strength = strength
        self.register_buffer("excess_square", torch.zeros(cells**3))
        self.register_buffer("corner", torch.zeros(3))
        self.register_buffer("cell", torch.ones(()))

    @torch.no_grad()
    def fit(
        self,
        views: Iterable[tuple[Float[Tensor, "h w"], Float[Tensor, "h w 3"], Float[Tensor, "h w"]]],
        center: Float[Tensor, "3"],
        radius: float,
    ) -> None:
        """Collect the anomaly maps of normal views.

        Args:
            views: for each view its anomaly map, the surface point of each pixel in the world frame, and the opacity of
                the object.
            center: center of the object, world frame.
            radius: radius of the object, scene units.

        Raises:
            ValueError: if no view shows the object.
        """
        self.cell = (2 * _REACH * center.new_tensor(radius) / self.cells).clamp(min=1e-6)
        self.corner = center - self.cells / 2 * self.cell
        sums = center.new_zeros(2, self.cells**3)
        for anomaly_map, points, alpha in views:
            opaque = alpha > _OPAQUE
            squares = anomaly_map[opaque].square()
            for index, weight in self._corners(points[opaque]):
                sums[0].index_add_(0, index, weight * squares)
                sums[1].index_add_(0, index, weight)
        total = sums.sum(1)
        if not float(total[1]) > 0:
            msg = "SurfaceStatistics.fit needs normal views that show the object, got none."
            raise ValueError(msg)
        squares = (sums[0] + PRIOR_PIXELS * total[0] / total[1]) / (sums[1] + PRIOR_PIXELS)
        ordered, order = squares.sort()
        median = ordered[torch.searchsorted(sums[1][order].cumsum(0), total[1:] / 2).clamp(max=len(order) - 1)]
        self.excess_square = squares / median.clamp(min=1e-12)

    def forward(
        self,
        anomaly_map: Float[Tensor, "b h w"],
        points: Float[Tensor, "b h w 3"],
        alpha: Float[Tensor, "b h w"],
    ) -> Float[Tensor, "b h w"]:
        """Divide anomaly maps by the residuals of normal views at the same surface points.

        Args:
            anomaly_map: maps of the queries.
            points: surface point of each pixel, world frame; without meaning where ``alpha`` is 0.
            alpha: opacity of the object in the references, in [0, 1].
        """
        return self.relative(anomaly_map, points, alpha) if self.fitted else anomaly_map

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` has collected normal views."""
        return bool(self.excess_square.any())

    def relative(
        self,
        anomaly_map: Float[Tensor, "b h w"],
        points: Float[Tensor, "b h w 3"],
        alpha: Float[Tensor, "b h w"],
    ) -> Float[Tensor, "b h w"]:
        """Divide as ``forward`` does after ``fit``, but without a branch on the data, so that this can be exported."""
        excess = torch.zeros_like(anomaly_map)
        for index, weight in self._corners(points):
            excess = excess + self.excess_square[index] * weight
        return anomaly_map / torch.where(alpha > _MIN_OPACITY, excess, 0).clamp(min=1).pow(self.strength / 2)

    def _corners(self, points: Float[Tensor, "*n 3"]) -> Iterable[tuple[Int[Tensor, "*n"], Float[Tensor, "*n"]]]:
        """Iterate over the eight cells around each point, with their weights of trilinear interpolation."""
        position = ((points - self.corner) / self.cell - 0.5).clamp(0.0, self.cells - 1.001)
        low = position.floor()
        fraction = position - low
        first = low.long()
        for number in range(8):
            upper = [bool(number >> axis & 1) for axis in range(3)]
            index = torch.zeros_like(first[..., 0])
            weight = torch.ones_like(fraction[..., 0])
            for axis in range(3):
                index = index * self.cells + first[..., axis] + int(upper[axis])
                weight = weight * (fraction[..., axis] if upper[axis] else 1 - fraction[..., axis])
            yield index, weight
