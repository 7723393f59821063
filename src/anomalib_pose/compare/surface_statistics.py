# SPDX-License-Identifier: Apache-2.0
"""How much good views differ from their renderings at each place of the object's surface."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PRIOR_PIXELS = 2.0
"""So many pixels of the average are added to each cell: cells that few views see borrow from it."""

_REACH = 1.3  # half the cube's side in radii of the object, which leave out its outermost parts
_SEEN = 0.05  # opacity below which a pixel does not show the surface
_OPAQUE = 0.5


class SurfaceStatistics(nn.Module):
    r"""Anomaly maps of good views, collected on the surface that they show, as what to expect of a query.

    Gloss, thin parts and places that few views see are rendered worse than others, from wherever they are looked at.
    The maps of good views are collected in the cells of a cube around the object: e is their root mean square. Where
    the surface point that a pixel shows is worse than the median, the query's map is divided by how much worse:

    .. math:: m / \max(1, e / \mathrm{median}(e))^s

    Other places keep what they have: a defect counts no more on a surface that is rendered well. Between the centers of
    the cells is interpolated. Until it is fitted it changes nothing.

    Args:
        cells: along each side of the cube.
        strength: the exponent s; less than 1 where queries are lit otherwise, and gloss lies elsewhere than it did.

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
        """Collect the maps of good views.

        Args:
            views: anomaly map of each, the points that its pixels show, world frame, and the object's opacity.
            center: of the object, world frame.
            radius: of the object.

        Raises:
            ValueError: if there is no view that shows the object.
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
            msg = "SurfaceStatistics.fit expects good views that show the object, found none."
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
        """Anomaly maps relative to what is expected of the surface that they show.

        Args:
            anomaly_map: of queries.
            points: that the pixels show, world frame; of no meaning where ``alpha`` is 0.
            alpha: opacity of the object in the reference, in [0, 1].
        """
        return self.relative(anomaly_map, points, alpha) if self.fitted else anomaly_map

    @property
    def fitted(self) -> bool:
        """Whether good views were collected."""
        return bool(self.excess_square.any())

    def relative(
        self,
        anomaly_map: Float[Tensor, "b h w"],
        points: Float[Tensor, "b h w 3"],
        alpha: Float[Tensor, "b h w"],
    ) -> Float[Tensor, "b h w"]:
        """``forward`` when it is fitted; holds no branch that depends on the data."""
        excess = torch.zeros_like(anomaly_map)
        for index, weight in self._corners(points):
            excess = excess + self.excess_square[index] * weight
        return anomaly_map / torch.where(alpha > _SEEN, excess, 0).clamp(min=1).pow(self.strength / 2)

    def _corners(self, points: Float[Tensor, "*n 3"]) -> Iterable[tuple[Int[Tensor, "*n"], Float[Tensor, "*n"]]]:
        """The eight cells around each point with their weights of trilinear interpolation."""
        position = ((points - self.corner) / self.cell - 0.5).clamp(0.0, self.cells - 1.001)
        low = position.floor()
        share = position - low
        first = low.long()
        for number in range(8):
            upper = [bool(number >> axis & 1) for axis in range(3)]
            index = torch.zeros_like(first[..., 0])
            weight = torch.ones_like(share[..., 0])
            for axis in range(3):
                index = index * self.cells + first[..., axis] + int(upper[axis])
                weight = weight * (share[..., axis] if upper[axis] else 1 - share[..., axis])
            yield index, weight
