# SPDX-License-Identifier: Apache-2.0
"""Rendering of colored chairs, and masks of the anomaly of a broken chair."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.mesh import Fragments, Mesh, rasterize_mesh, resolve
from anomalib_pose.render.mesh_lighting import BakedLight, Light, shade
from anomalib_pose.sample_data.chair_anomalies import Anomaly
from anomalib_pose.sample_data.chair_parts import Chair
from anomalib_pose.sample_data.defects import to_bytes

LIGHTS = 6

_FOCAL = 355 / 256
_RADIUS = (2.9, 3.5)
_ELEVATION = (5, 45)
_TARGET_SPREAD = 0.06
# Rotation from the frame of chairs, z up, to the published world frame, y up.
_TO_Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
_DEPTH_CHANGE = 0.02  # smallest difference of depth that counts as an anomaly
# Fractions of the image: smaller changes are invisible, larger ones change the chair as a whole.
_MIN_AREA, _MAX_AREA = 0.002, 0.12

_WOODS = ((0.45, 0.28, 0.15), (0.72, 0.53, 0.33), (0.30, 0.18, 0.11), (0.62, 0.40, 0.22))
_METALS = ((0.16, 0.16, 0.17), (0.45, 0.46, 0.48), (0.62, 0.60, 0.55))
_FABRICS = (
    (0.62, 0.14, 0.14),
    (0.13, 0.27, 0.50),
    (0.18, 0.40, 0.25),
    (0.78, 0.58, 0.16),
    (0.35, 0.35, 0.38),
    (0.55, 0.33, 0.52),
)

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """A pattern of two colors in space.

    Args:
        first: first color, RGB in [0, 1].
        second: second color, RGB in [0, 1].
        kind: "plain", "grain", "stripes" or "checks".
        frequency: frequency of the pattern, in radians per unit of length.
    """

    first: Color
    second: Color
    kind: str
    frequency: float

    def colors(self, position: np.ndarray) -> np.ndarray:
        """Evaluate the colors (n, 3) at positions (n, 3)."""
        x, y, z = position.T
        f = self.frequency
        if self.kind == "grain":
            mix = 0.5 + 0.5 * np.sin(f * (x + 0.7 * y + 0.15 * z) + 2 * np.sin(3 * z + 2 * x))
        elif self.kind == "stripes":
            mix = (np.sin(f * x) > 0).astype(float)
        elif self.kind == "checks":
            mix = ((np.sin(f * x) > 0) ^ (np.sin(f * (y + z)) > 0)).astype(float)
        else:
            mix = np.zeros(len(position))
        colors: np.ndarray = np.array(self.first) + mix[:, None] * (np.array(self.second) - self.first)
        return colors


@dataclass(frozen=True)
class QueryPose:
    """Pose of a query's camera, with rounded numbers for the file's name.

    Args:
        radius: distance from the origin.
        azimuth: azimuth in degrees.
        elevation: elevation in degrees.
        camera: camera in the published world frame, y up.
    """

    radius: float
    azimuth: int
    elevation: int
    camera: Camera

    @classmethod
    def random(cls, rng: np.random.Generator, size: int) -> "QueryPose":
        """Choose a random pose around the upper half of the chair, aimed at about its center.

        Args:
            rng: random generator.
            size: side of the image in pixels.
        """
        radius = round(rng.uniform(*_RADIUS), 2)
        azimuth, elevation = int(rng.integers(360)), int(rng.integers(_ELEVATION[0], _ELEVATION[1] + 1))
        a, e = math.radians(azimuth), math.radians(elevation)
        direction = (math.cos(e) * math.cos(a), math.sin(e), math.cos(e) * math.sin(a))
        eye = radius * torch.tensor(direction, dtype=torch.float64)
        target = torch.from_numpy(rng.uniform(-_TARGET_SPREAD, _TARGET_SPREAD, 3))
        pose = look_at(eye, target, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        focal = _FOCAL * size
        intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
        return cls(radius, azimuth, elevation, Camera(pose, intrinsics, size, size))

    @property
    def chair_camera(self) -> Camera:
        """Camera in the frame of the chair, z up."""
        to_z_up = torch.eye(4, dtype=torch.float64)
        to_z_up[:3, :3] = _TO_Y_UP.T
        return self.camera.with_pose(to_z_up @ self.camera.camera_to_world)


@dataclass(frozen=True)
class AnomalyMasks:
    """Masks of the pixels that differ between a broken chair and the whole chair.

    Args:
        new: mask (H, W) bool of the differing pixels on the anomalous part; for a missing part, on the part of the
            whole chair.
        old: mask (H, W) bool of the differing pixels on the part of the whole chair; None for a missing part.
    """

    new: np.ndarray
    old: np.ndarray | None

    @property
    def union(self) -> np.ndarray:
        """Union (H, W) of both masks."""
        return self.new if self.old is None else self.new | self.old

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box of both masks: column, row, width and height in pixels."""
        rows, columns = np.flatnonzero(self.union.any(1)), np.flatnonzero(self.union.any(0))
        return (
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0]) + 1,
            int(rows[-1] - rows[0]) + 1,
        )

    @property
    def overlap(self) -> float:
        """Intersection over union of the two masks."""
        return 0.0 if self.old is None else float((self.new & self.old).sum() / self.union.sum())


def published_mesh(chair: Chair) -> Mesh:
    """Return the chair's mesh in the published world frame, y up."""
    mesh = chair.mesh
    return Mesh(mesh.vertices @ _TO_Y_UP.T, mesh.faces, mesh.colors, mesh.normals @ _TO_Y_UP.T, mesh.closed)


def random_light(rng: np.random.Generator) -> Light:
    """Make daylight with random direction, strength and color temperature."""
    azimuth, warmth = rng.uniform(0, 2 * np.pi), rng.uniform(-0.08, 0.08)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])

    def tinted(color: Color, factor: float) -> Color:
        red, green, blue = (tint * color * factor).tolist()
        return red, green, blue

    default, strength = Light(), rng.uniform(0.7, 1.3)
    return Light(
        sky=tinted(default.sky, 1.0),
        ground=tinted(default.ground, 1.0),
        key_direction=(math.cos(azimuth), math.sin(azimuth), rng.uniform(0.5, 1.6)),
        key=tinted(default.key, strength),
        fill_direction=(-math.cos(azimuth), -math.sin(azimuth), 0.25),
        fill=tinted(default.fill, 1.0),
        intensity=rng.uniform(0.8, 1.15),
    )


def random_materials(rng: np.random.Generator) -> tuple[Material, Material]:
    """Choose random materials of frame and cover."""
    is_wooden = rng.random() < 0.6
    palette = _WOODS if is_wooden else _METALS
    base = _vary_color(palette[int(rng.integers(len(palette)))], rng)
    dark = (0.75 * base[0], 0.72 * base[1], 0.7 * base[2])
    frame = Material(base, dark, "grain" if is_wooden else "plain", rng.uniform(25, 60))
    if rng.random() < 0.3:
        return frame, frame
    first, second = (_vary_color(_FABRICS[i], rng) for i in rng.choice(len(_FABRICS), 2, replace=False))
    kind = ("plain", "plain", "stripes", "checks")[int(rng.integers(4))]
    return frame, Material(first, second, kind, rng.uniform(15, 40))


def render_query(
    chair: Chair, materials: tuple[Material, Material], camera: Camera, light: Light, baked: BakedLight
) -> np.ndarray:
    """Render a chair on white to an image (H, W, 3) uint8.

    Args:
        chair: chair to render.
        materials: materials of frame and cover.
        camera: camera in the chair's frame.
        light: light of the scene.
        baked: ``bake_light(chair.mesh, light)``.
    """
    fragments = rasterize_mesh(chair.mesh, camera)
    position = fragments.interpolate(chair.mesh, torch.from_numpy(chair.texture)).numpy()
    part_materials = np.array([0 if part is None else part.material for part in chair.parts])
    material = part_materials[chair.face_part[fragments.face.numpy()]]
    albedo = np.empty((len(position), 3))
    for number, pattern in enumerate(materials):
        albedo[material == number] = pattern.colors(position[material == number])
    samples = shade(chair.mesh, fragments, torch.from_numpy(albedo).float(), camera, light, baked)
    return to_bytes(resolve(fragments, samples).rgb)


def anomaly_masks(chair: Chair, anomaly: Anomaly, camera: Camera) -> AnomalyMasks | None:
    """Compute the masks of a visible anomaly from the surfaces only: its shadows on other parts do not count.

    Args:
        chair: whole chair.
        anomaly: broken chair.
        camera: camera in the chairs' frame.

    Returns:
        The masks; None if too little or too much of the image differs.
    """
    whole, broken = (rasterize_mesh(variant.mesh, camera) for variant in (chair, anomaly.chair))
    whole_part = _part_samples(whole, chair, anomaly.number)
    broken_part = _part_samples(broken, anomaly.chair, anomaly.number)
    depth_differs = (whole.grid(whole.depth, 0.0) - broken.grid(broken.depth, 0.0)).abs() > _DEPTH_CHANGE
    differs = depth_differs | (whole_part != broken_part)
    new, old = (_any_sample(differs & part, whole.supersampling) for part in (broken_part, whole_part))
    masks = AnomalyMasks(old, None) if anomaly.kind == "missing" else AnomalyMasks(new, old)
    area = masks.union.mean()
    return masks if _MIN_AREA <= area <= _MAX_AREA and masks.new.any() else None


def _part_samples(fragments: Fragments, chair: Chair, number: int) -> Tensor:
    """Mark the samples (H s, W s) on a part."""
    return fragments.grid(torch.from_numpy(chair.face_part == number)[fragments.face.long()], False)


def _any_sample(samples: Tensor, s: int) -> np.ndarray:
    """Mark the pixels (H, W) with at least one marked sample."""
    pixels: np.ndarray = samples.unflatten(0, (-1, s)).unflatten(2, (-1, s)).any(3).any(1).numpy()
    return pixels


def _vary_color(color: Color, rng: np.random.Generator) -> Color:
    """Scale each channel of a color by a random factor."""
    red, green, blue = np.clip(np.array(color) * rng.uniform(0.8, 1.2, 3), 0.05, 0.85).tolist()
    return red, green, blue
