# SPDX-License-Identifier: Apache-2.0
"""Definition of Gaussian splatting in plain float64 PyTorch, and builders of test scenes."""

import math

import torch

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.geometry.lattice import look_at
from anomalib_pose.render.types import Gaussians

NEAR, BLUR, ALPHA_MIN, ALPHA_MAX, STOP = 0.01, 0.3, 1 / 255, 0.999, 1e-4
THRESHOLD_MARGIN = 1e-3  # relative distance from a threshold within which float32 may fall on the other side


def _rotation(quat):
    w, x, y, z = (quat / quat.norm()).unbind()
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]
    ).reshape(3, 3)  # fmt: skip


def _legendre_color(degree, coefficients, direction):
    """Evaluate spherical harmonics from associated Legendre functions, not from the package's polynomials."""
    x, y, z = direction.unbind()
    planar = [torch.complex(torch.ones_like(x), torch.zeros_like(x))]
    for _ in range(degree):
        planar.append(planar[-1] * torch.complex(x, y))  # sin^m theta e^(i m phi)
    color, index = 0.5, 0
    for l in range(degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            k = abs(m)
            # d^k/dz^k of the Legendre polynomial of order l
            legendre = torch.zeros_like(z)
            for j in range(l // 2 + 1):
                power = l - 2 * j
                if power >= k:
                    factor = (-1) ** j * math.comb(l, j) * math.comb(2 * l - 2 * j, l) / 2**l * math.perm(power, k)
                    legendre = legendre + factor * z ** (power - k)
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            norm = norm * (-1) ** k * (math.sqrt(2) if m else 1)
            angular = planar[k].imag if m < 0 else planar[k].real
            color = color + norm * legendre * angular * coefficients[index]
            index += 1
    return torch.clamp(color, min=0)


def _splat(gaussians, index, camera):
    """Return center (2,), covariance (2, 2), depth and color of one Gaussian; None in front of the near plane."""
    viewmat, K = torch.linalg.inv(camera.camera_to_world), camera.K
    mean = gaussians.means[index]
    x, y, z = (viewmat[:3, :3] @ mean + viewmat[:3, 3]).unbind()
    if z <= NEAR:
        return None
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    limit_x, limit_y = 0.15 * camera.width / fx, 0.15 * camera.height / fy
    slope_x = torch.clamp(x / z, -cx / fx - limit_x, (camera.width - cx) / fx + limit_x)
    slope_y = torch.clamp(y / z, -cy / fy - limit_y, (camera.height - cy) / fy + limit_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx / z * slope_x, zero, fy / z, -fy / z * slope_y]).reshape(2, 3)
    rotation = _rotation(gaussians.quats[index])
    covariance = rotation @ torch.diag(gaussians.scales[index] ** 2) @ rotation.T
    to_image = jacobian @ viewmat[:3, :3]
    on_image = to_image @ covariance @ to_image.T + BLUR * torch.eye(2, dtype=torch.float64)
    color = gaussians.colors[index]
    if gaussians.sh_degree is not None:
        towards = mean - camera.camera_to_world[:3, 3]
        color = _legendre_color(gaussians.sh_degree, color, towards / towards.norm())
    return torch.stack([fx * x / z + cx, fy * y / z + cy]), on_image, z, color


def define(gaussians, camera, background=None):
    """Render rgb, depth and alpha of one camera, and mark the pixels (H, W) with no value close to a threshold."""
    rows, columns = torch.meshgrid(
        torch.arange(camera.height, dtype=torch.float64) + 0.5,
        torch.arange(camera.width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([columns, rows], -1)
    transmittance = torch.ones_like(rows)
    rgb, sum_z = torch.zeros(*rows.shape, 3, dtype=torch.float64), torch.zeros_like(rows)
    running, unambiguous = torch.ones_like(rows, dtype=torch.bool), torch.ones_like(rows, dtype=torch.bool)
    splats = [(_splat(gaussians, i, camera), gaussians.opacities[i]) for i in range(len(gaussians))]
    for (center, covariance, z, color), opacity in sorted((s for s in splats if s[0]), key=lambda s: s[0][2].item()):
        offset = center - pixels
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, torch.linalg.inv(covariance), offset)
        peak = opacity * torch.exp(-sigma)
        alpha = torch.clamp(peak, max=ALPHA_MAX)
        contributes = alpha >= ALPHA_MIN
        after = transmittance * (1 - alpha)
        stops = contributes & (after <= STOP)
        near_threshold = ((peak / ALPHA_MIN - 1).abs() < THRESHOLD_MARGIN) | ((peak / ALPHA_MAX - 1).abs() < 1e-6)
        near_threshold |= contributes & ((after / STOP - 1).abs() < THRESHOLD_MARGIN)
        unambiguous &= ~(running & near_threshold)
        running = running & ~stops
        weight = torch.where(running & contributes, alpha * transmittance, 0.0)
        transmittance = torch.where(running & contributes, after, transmittance)
        rgb = rgb + weight[..., None] * color
        sum_z = sum_z + weight * z
    alpha = 1 - transmittance
    depth = torch.where(alpha > 0, sum_z / torch.where(alpha > 0, alpha, 1.0), 0.0)
    if background is not None:
        rgb = rgb + transmittance[..., None] * background
    return rgb, depth, alpha, unambiguous


def make_gaussians(count, seed=0, sh_degree=None, size=0.08, opacity=(0.05, 0.95)):
    """Make anisotropic Gaussians in a ball of radius 1, float64 tensors whose values are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    means = means * torch.rand(count, 1, generator=generator) ** (1 / 3)
    quats = torch.randn(count, 4, generator=generator)
    scales = size * torch.exp(0.7 * torch.randn(count, 3, generator=generator))
    opacities = opacity[0] + (opacity[1] - opacity[0]) * torch.rand(count, generator=generator)
    if sh_degree is None:
        colors = torch.rand(count, 3, generator=generator)
    else:
        colors = 0.4 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=generator)
    return Gaussians(means, quats, scales, opacities, colors, sh_degree).to(torch.float64)


def make_camera(eye=(0.3, -0.4, -3.0), width=40, height=32, focal=1.2, offset=(0.0, 0.0), target=(0.0, 0.0, 0.0)):
    """Make a camera that looks at a target; focal length and offset of the principal point are in image widths."""
    pose = look_at(torch.tensor(eye), torch.tensor(target), torch.tensor([0.0, -1.0, 0.0])).to(torch.float64)
    f = focal * width
    K = torch.tensor([[f, 0, width * (0.5 + offset[0])], [0, 1.1 * f, height * (0.5 + offset[1])], [0, 0, 1]])
    return Camera(pose, K.to(torch.float64), width, height)
