# SPDX-License-Identifier: Apache-2.0
"""An object as a radiance field in two multi-layer perceptrons (Mildenhall et al. 2020)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera
from anomalib_pose.render import RenderOutput
from anomalib_pose.render.volume import Rays, RenderedRays, box_interval, camera_rays, composite, render_rays

_WIDTH, _DEPTH, _SKIP = 256, 8, 4
_POSITION_BANDS, _DIRECTION_BANDS = 10, 4
_RAYS_AT_ONCE = 2048


def encode(values: Float[Tensor, "n 3"], bands: int) -> Float[Tensor, "n c"]:
    """Values with sines and cosines of their multiples by powers of two (section 5.1).

    Args:
        values: in about [-1, 1].
        bands: number of powers.
    """
    angles = values[:, None] * math.pi * 2.0 ** torch.arange(bands, device=values.device)[:, None]
    return torch.cat([values, angles.sin().flatten(1), angles.cos().flatten(1)], 1)


class RadianceMlp(nn.Module):
    """The network of NeRF: 8 layers of 256, the position again at the fifth, color after the direction (figure 7)."""

    def __init__(self) -> None:
        super().__init__()
        position, direction = 3 + 6 * _POSITION_BANDS, 3 + 6 * _DIRECTION_BANDS
        widths = [position] + [_WIDTH + (position if layer == _SKIP else 0) for layer in range(_DEPTH - 1)]
        self.layers = nn.ModuleList(nn.Linear(width, _WIDTH) for width in widths)
        self.density = nn.Linear(_WIDTH, 1)
        self.feature = nn.Linear(_WIDTH, _WIDTH)
        self.view = nn.Linear(_WIDTH + direction, _WIDTH // 2)
        self.color = nn.Linear(_WIDTH // 2, 3)

    def forward(
        self, points: Float[Tensor, "m 3"], directions: Float[Tensor, "m 3"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, "m 3"]]:
        """Density in units of the inverse of the points' own, and colors.

        Args:
            points: in [-1, 1].
            directions: of view, of length 1.
        """
        encoded = encode(points, _POSITION_BANDS)
        hidden = encoded
        for number, layer in enumerate(self.layers):
            hidden = F.relu(layer(hidden))
            if number == _SKIP:
                hidden = torch.cat([encoded, hidden], 1)
        seen = torch.cat([self.feature(hidden), encode(directions, _DIRECTION_BANDS)], 1)
        return F.relu(self.density(hidden))[:, 0], self.color(F.relu(self.view(seen))).sigmoid()


class MlpScene(nn.Module):
    """A fitted object as NeRF represents it: a coarse network that says where to look, and a fine one.

    Slow without a GPU: a view of 100 pixels takes seconds. Near and far ends of the rays are where they enter and leave
    a box around the object.

    Args:
        samples: of the coarse network, a ray; 64 in the paper.
        fine_samples: added where the coarse network found something; 128 in the paper, 64 in OmniposeAD's search.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, samples: int = 64, fine_samples: int = 128) -> None:
        super().__init__()
        self.samples = samples
        self.fine_samples = fine_samples
        self.coarse, self.fine = RadianceMlp(), RadianceMlp()
        self.register_buffer("lower", torch.full((3,), -1.0))
        self.register_buffer("upper", torch.full((3,), 1.0))
        self.register_buffer("fitted", torch.tensor(data=False))

    @property
    def center(self) -> Float[Tensor, "3"]:
        """Middle of the box around the object, world frame."""
        return (self.lower + self.upper) / 2

    @property
    def extent(self) -> float:
        """Half the diagonal of the box, scene units."""
        return float((self.upper - self.lower).norm()) / 2

    def draw(self, rays: Rays, generator: torch.Generator | None = None) -> tuple[RenderedRays, RenderedRays]:
        """What the coarse and the fine network show: colors over black, expected distance times alpha, and alpha.

        Args:
            rays: world frame.
            generator: CPU generator that samples are shifted with; None for the middles of their intervals.
        """
        scale = (self.upper - self.lower).max() / 2
        local = Rays((rays.origins - self.center) / scale, rays.directions, rays.cosines)
        half = (self.upper - self.lower) / 2 / scale
        near, far = box_interval(local, -half, half)
        span = (far - near).clamp_min(0)
        count = len(near)
        shift = torch.full((count, self.samples), 0.5, device=near.device)
        if generator is not None:
            shift = torch.rand(count, self.samples, generator=generator).to(near)
        share = (torch.arange(self.samples, device=near.device) + shift) / self.samples
        coarse, weights = self._along(self.coarse, local, near[:, None] + share * span[:, None], span, near)
        with torch.no_grad():
            more = _resample(share, weights, self.fine_samples, generator)
            share = torch.cat([share, more], 1).sort(1).values
        fine, _ = self._along(self.fine, local, near[:, None] + share * span[:, None], span, near)
        return (coarse[0], coarse[1] * scale, coarse[2]), (fine[0], fine[1] * scale, fine[2])

    @staticmethod
    def _along(
        network: RadianceMlp, rays: Rays, distance: Tensor, span: Tensor, near: Tensor
    ) -> tuple[RenderedRays, Tensor]:
        """Composite one network's samples at distances (N, S); rays that miss the box get nothing."""
        count, samples = distance.shape
        points = rays.origins[:, None] + distance[..., None] * rays.directions[:, None]
        directions = rays.directions[:, None].expand_as(points)
        density, colors = network(points.flatten(0, 1), directions.flatten(0, 1))
        ends = torch.cat([distance[:, 1:], (near + span)[:, None]], 1)
        length = (ends - distance).clamp_min(0) * (span > 0)[:, None]
        ray = torch.arange(count, device=near.device).repeat_interleave(samples)
        rgb, along, alpha, weights = composite(density, colors, distance.flatten(), length.flatten(), ray, count)
        return (rgb, along, alpha), weights.unflatten(0, (count, samples))

    def render_pixels(self, camera: Camera, pixels: Tensor, background: Tensor) -> Float[Tensor, "n 3"]:
        """Colors of some pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices into the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        _, (rgb, _, alpha) = self.draw(camera_rays(camera, pixels))
        return rgb + (1 - alpha)[:, None] * background

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of the object; differentiable in the cameras' poses.

        Args:
            cameras: one camera, or C of them, on any device.
            background: color (3,) behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        if not bool(self.fitted):
            msg = "This radiance field has not been fitted: fit it or load a checkpoint first."
            raise ValueError(msg)
        return render_rays(self._draw_in_parts, cameras.to(self.lower.device), background)

    def _draw_in_parts(self, rays: Rays) -> RenderedRays:
        parts = [self.draw(Rays(*some))[1] for some in zip(*(x.split(_RAYS_AT_ONCE) for x in rays), strict=True)]
        rgb, distance, alpha = (torch.cat(part) for part in zip(*parts, strict=True))
        return rgb, distance, alpha


def _resample(
    share: Float[Tensor, "n s"], weights: Float[Tensor, "n s"], count: int, generator: torch.Generator | None
) -> Float[Tensor, "n count"]:
    """Places along the rays drawn from the coarse weights, by the inverse of their distribution (section 5.2)."""
    middles = (share[:, 1:] + share[:, :-1]) / 2
    inner = weights[:, 1:-1] + 1e-5
    distribution = torch.cumsum(inner / inner.sum(1, keepdim=True), 1)
    distribution = torch.cat([torch.zeros_like(distribution[:, :1]), distribution], 1)
    wanted = (torch.arange(count) + 0.5).expand(len(share), count) / count
    if generator is not None:
        wanted = torch.rand(len(share), count, generator=generator)
    wanted = wanted.to(share).contiguous()
    above = torch.searchsorted(distribution, wanted, right=True).clamp(1, distribution.shape[1] - 1)
    low, high = distribution.gather(1, above - 1), distribution.gather(1, above)
    part = ((wanted - low) / (high - low).clamp_min(1e-5)).clamp(0, 1)
    return torch.lerp(middles.gather(1, above - 1), middles.gather(1, above), part)
