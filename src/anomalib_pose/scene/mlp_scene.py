# SPDX-License-Identifier: Apache-2.0
"""A scene as a neural radiance field of two multi-layer perceptrons (NeRF, Mildenhall et al. 2020)."""

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
_RAYS_PER_CHUNK = 2048


def encode(values: Float[Tensor, "n 3"], bands: int) -> Float[Tensor, "n c"]:
    """Append the positional encoding: sines and cosines of the values times powers of two (section 5.1).

    Args:
        values: in about [-1, 1].
        bands: number of powers of two.
    """
    angles = values[:, None] * math.pi * 2.0 ** torch.arange(bands, device=values.device)[:, None]
    return torch.cat([values, angles.sin().flatten(1), angles.cos().flatten(1)], 1)


class RadianceMlp(nn.Module):
    """NeRF's network (figure 7): 8 layers of 256, the position again after the fifth, the direction at the end."""

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
        """Evaluate density and colors (M, 3) at M points.

        Args:
            points: in [-1, 1].
            directions: viewing directions, of length 1.

        Returns:
            Density (M,), per unit of length of the points' coordinates, and colors in [0, 1].
        """
        encoded = encode(points, _POSITION_BANDS)
        hidden = encoded
        for number, layer in enumerate(self.layers):
            hidden = F.relu(layer(hidden))
            if number == _SKIP:
                hidden = torch.cat([encoded, hidden], 1)
        view_features = torch.cat([self.feature(hidden), encode(directions, _DIRECTION_BANDS)], 1)
        return F.relu(self.density(hidden))[:, 0], self.color(F.relu(self.view(view_features))).sigmoid()


class MlpScene(nn.Module):
    """A fitted object as two networks. The coarse network's weights place the samples of the fine network.

    Rays start and end where they enter and leave a box around the object. Without a GPU the scene is slow: a view of
    100 pixels takes seconds.

    Args:
        samples: samples of the coarse network per ray; 64 in the paper.
        fine_samples: samples per ray that are added where the coarse weights are large; 128 in the paper, 64 in
            OmniposeAD's pose estimation.
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
        """Center of the box around the object, world frame."""
        return (self.lower + self.upper) / 2

    @property
    def extent(self) -> float:
        """Half the diagonal of the box, scene units."""
        return float((self.upper - self.lower).norm()) / 2

    def render_rays(self, rays: Rays, generator: torch.Generator | None = None) -> tuple[RenderedRays, RenderedRays]:
        """Render rays with the coarse and with the fine network.

        Args:
            rays: world frame.
            generator: CPU generator of the samples' offsets; None for the centers of the intervals.

        Returns:
            For each of the two networks: colors over black, expected distance times alpha, and alpha.
        """
        scale = (self.upper - self.lower).max() / 2
        local = Rays((rays.origins - self.center) / scale, rays.directions, rays.cosines)
        half = (self.upper - self.lower) / 2 / scale
        near, far = box_interval(local, -half, half)
        span = (far - near).clamp_min(0)
        count = len(near)
        offset = torch.full((count, self.samples), 0.5, device=near.device)
        if generator is not None:
            offset = torch.rand(count, self.samples, generator=generator).to(near)
        fraction = (torch.arange(self.samples, device=near.device) + offset) / self.samples
        coarse, weights = self._composite(self.coarse, local, near[:, None] + fraction * span[:, None], span, near)
        with torch.no_grad():
            fine_fraction = _resample(fraction, weights, self.fine_samples, generator)
            fraction = torch.cat([fraction, fine_fraction], 1).sort(1).values
        fine, _ = self._composite(self.fine, local, near[:, None] + fraction * span[:, None], span, near)
        return (coarse[0], coarse[1] * scale, coarse[2]), (fine[0], fine[1] * scale, fine[2])

    @staticmethod
    def _composite(
        network: RadianceMlp, rays: Rays, distance: Tensor, span: Tensor, near: Tensor
    ) -> tuple[RenderedRays, Tensor]:
        """Evaluate one network at distances (N, S) and composite the samples; rays that miss the box stay empty."""
        count, samples = distance.shape
        points = rays.origins[:, None] + distance[..., None] * rays.directions[:, None]
        directions = rays.directions[:, None].expand_as(points)
        density, colors = network(points.flatten(0, 1), directions.flatten(0, 1))
        ends = torch.cat([distance[:, 1:], (near + span)[:, None]], 1)
        length = (ends - distance).clamp_min(0) * (span > 0)[:, None]
        ray = torch.arange(count, device=near.device).repeat_interleave(samples)
        rgb, weighted_distance, alpha, weights = composite(
            density, colors, distance.flatten(), length.flatten(), ray, count
        )
        return (rgb, weighted_distance, alpha), weights.unflatten(0, (count, samples))

    def render_pixels(self, camera: Camera, pixels: Tensor, background: Tensor) -> Float[Tensor, "n 3"]:
        """Render the colors of N pixels; differentiable in the camera's pose.

        Args:
            camera: one camera.
            pixels: indices (N,) of the image's pixels, row by row.
            background: color (3,) behind the object.
        """
        _, (rgb, _, alpha) = self.render_rays(camera_rays(camera, pixels))
        return rgb + (1 - alpha)[:, None] * background

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object; differentiable in the cameras' poses.

        Args:
            cameras: one camera, or C of them, on any device.
            background: color (3,) behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        if not bool(self.fitted):
            msg = "This radiance field has not been fitted. Fit it or load a checkpoint first."
            raise ValueError(msg)
        return render_rays(self._render_in_chunks, cameras.to(self.lower.device), background)

    def _render_in_chunks(self, rays: Rays) -> RenderedRays:
        """Render rays with the fine network, a bounded number at a time."""
        chunks = zip(*(values.split(_RAYS_PER_CHUNK) for values in rays), strict=True)
        rendered = [self.render_rays(Rays(*chunk))[1] for chunk in chunks]
        rgb, distance, alpha = (torch.cat(parts) for parts in zip(*rendered, strict=True))
        return rgb, distance, alpha


def _resample(
    fraction: Float[Tensor, "n s"], weights: Float[Tensor, "n s"], count: int, generator: torch.Generator | None
) -> Float[Tensor, "n count"]:
    """Sample positions along rays from the coarse weights, by the inverse of their distribution (section 5.2).

    Args:
        fraction: positions of the coarse samples, as fractions of the ray inside the box, ascending.
        weights: compositing weights of the coarse samples.
        count: number of new positions per ray.
        generator: CPU generator; None for evenly spaced quantiles.
    """
    middles = (fraction[:, 1:] + fraction[:, :-1]) / 2
    inner = weights[:, 1:-1] + 1e-5
    distribution = torch.cumsum(inner / inner.sum(1, keepdim=True), 1)
    distribution = torch.cat([torch.zeros_like(distribution[:, :1]), distribution], 1)
    quantiles = (torch.arange(count) + 0.5).expand(len(fraction), count) / count
    if generator is not None:
        quantiles = torch.rand(len(fraction), count, generator=generator)
    quantiles = quantiles.to(fraction).contiguous()
    above = torch.searchsorted(distribution, quantiles, right=True).clamp(1, distribution.shape[1] - 1)
    low, high = distribution.gather(1, above - 1), distribution.gather(1, above)
    position = ((quantiles - low) / (high - low).clamp_min(1e-5)).clamp(0, 1)
    return torch.lerp(middles.gather(1, above - 1), middles.gather(1, above), position)
