# SPDX-License-Identifier: Apache-2.0
"""Colored pictures of chairs, and where a wrong chair differs from the right one."""

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
_AIM = 0.06
# From chairs with z up to the published world, y up.
_TO_Y_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
_DEEPER = 0.02
# Shares of the image: smaller changes are not seen, larger ones are another chair.
_LEAST_AREA, _LARGEST_AREA = 0.002, 0.12

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
        first: color in [0, 1].
        second: another.
        kind: "plain", "grain", "stripes" or "checks".
        frequency: of the pattern, in radians per unit of length.
    """

    first: Color
    second: Color
    kind: str
    frequency: float

    def colors(self, position: np.ndarray) -> np.ndarray:
        """Colors (n, 3) at positions (n, 3)."""
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
class Pose:
    """Where a query is seen from, in numbers that fit into a file's name.

    Args:
        radius: distance from the origin.
        azimuth: degrees.
        elevation: degrees.
        camera: the camera in the published world, y up.
    """

    radius: float
    azimuth: int
    elevation: int
    camera: Camera

    @classmethod
    def random(cls, rng: np.random.Generator, size: int) -> "Pose":
        """A pose around the upper half of the chair, aimed at about its middle.

        Args:
            rng: source of the pose.
            size: side of the image in pixels.
        """
        radius = round(rng.uniform(*_RADIUS), 2)
        azimuth, elevation = int(rng.integers(360)), int(rng.integers(_ELEVATION[0], _ELEVATION[1] + 1))
        a, e = math.radians(azimuth), math.radians(elevation)
        direction = (math.cos(e) * math.cos(a), math.sin(e), math.cos(e) * math.sin(a))
        eye = radius * torch.tensor(direction, dtype=torch.float64)
        target = torch.from_numpy(rng.uniform(-_AIM, _AIM, 3))
        pose = look_at(eye, target, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        focal = _FOCAL * size
        intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
        return cls(radius, azimuth, elevation, Camera(pose, intrinsics, size, size))

    @property
    def chair_camera(self) -> Camera:
        """The camera in the chair's own frame, z up."""
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = _TO_Y_UP.T
        return self.camera.with_pose(turn @ self.camera.camera_to_world)


@dataclass(frozen=True)
class Change:
    """Where a wrong chair differs from the right one in an image.

    Args:
        new: (H, W) bool, pixels of the wrong part that differ; where a part is missing, those it would have.
        old: (H, W) bool, pixels of the right part that differ; None where the part is missing.
    """

    new: np.ndarray
    old: np.ndarray | None

    @property
    def union(self) -> np.ndarray:
        """Pixels of both masks."""
        return self.new if self.old is None else self.new | self.old

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Column, row, width and height in pixels of the box around all of them."""
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
    """The chair's mesh in the published world, y up."""
    mesh = chair.mesh
    return Mesh(mesh.vertices @ _TO_Y_UP.T, mesh.faces, mesh.colors, mesh.normals @ _TO_Y_UP.T, mesh.closed)


def random_light(rng: np.random.Generator) -> Light:
    """Daylight from another side, stronger or weaker, warmer or cooler."""
    azimuth, warmth = rng.uniform(0, 2 * np.pi), rng.uniform(-0.08, 0.08)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])

    def scaled(color: Color, factor: float) -> Color:
        red, green, blue = (tint * color * factor).tolist()
        return red, green, blue

    plain, strength = Light(), rng.uniform(0.7, 1.3)
    return Light(
        sky=scaled(plain.sky, 1.0),
        ground=scaled(plain.ground, 1.0),
        key_direction=(math.cos(azimuth), math.sin(azimuth), rng.uniform(0.5, 1.6)),
        key=scaled(plain.key, strength),
        fill_direction=(-math.cos(azimuth), -math.sin(azimuth), 0.25),
        fill=scaled(plain.fill, 1.0),
        intensity=rng.uniform(0.8, 1.15),
    )


def random_materials(rng: np.random.Generator) -> tuple[Material, Material]:
    """Materials of frame and cover."""
    wooden = rng.random() < 0.6
    palette = _WOODS if wooden else _METALS
    base = _varied(palette[int(rng.integers(len(palette)))], rng)
    dark = (0.75 * base[0], 0.72 * base[1], 0.7 * base[2])
    frame = Material(base, dark, "grain" if wooden else "plain", rng.uniform(25, 60))
    if rng.random() < 0.3:
        return frame, frame
    first, second = (_varied(_FABRICS[i], rng) for i in rng.choice(len(_FABRICS), 2, replace=False))
    kind = ("plain", "plain", "stripes", "checks")[int(rng.integers(4))]
    return frame, Material(first, second, kind, rng.uniform(15, 40))


def photograph(
    chair: Chair, materials: tuple[Material, Material], camera: Camera, light: Light, baked: BakedLight
) -> np.ndarray:
    """Picture (H, W, 3) uint8 on white.

    Args:
        chair: the chair.
        materials: of its frame and its cover.
        camera: in the chair's frame.
        light: the light.
        baked: what ``bake_light`` made of it for the chair's mesh.
    """
    fragments = rasterize_mesh(chair.mesh, camera)
    position = fragments.interpolate(chair.mesh, torch.from_numpy(chair.texture)).numpy()
    of_part = np.array([0 if part is None else part.material for part in chair.parts])
    material = of_part[chair.face_part[fragments.face.numpy()]]
    albedo = np.empty((len(position), 3))
    for number, kind in enumerate(materials):
        albedo[material == number] = kind.colors(position[material == number])
    samples = shade(chair.mesh, fragments, torch.from_numpy(albedo).float(), camera, light, baked)
    return to_bytes(resolve(fragments, samples).rgb)


def find_change(chair: Chair, anomaly: Anomaly, camera: Camera) -> Change | None:
    """Where the wrong part shows, by the surfaces alone: shadows that it casts elsewhere do not count.

    Args:
        chair: the right chair.
        anomaly: the wrong one.
        camera: in the chairs' frame.

    Returns:
        None if too little or too much of the image differs.
    """
    right, wrong = (rasterize_mesh(one.mesh, camera) for one in (chair, anomaly.chair))
    was, became = _seen(right, chair, anomaly.number), _seen(wrong, anomaly.chair, anomaly.number)
    deeper = (right.grid(right.depth, 0.0) - wrong.grid(wrong.depth, 0.0)).abs() > _DEEPER
    differs = deeper | (was != became)
    new, old = (_pixels(differs & mask, right.supersampling) for mask in (became, was))
    change = Change(old, None) if anomaly.kind == "missing" else Change(new, old)
    share = change.union.mean()
    return change if _LEAST_AREA <= share <= _LARGEST_AREA and change.new.any() else None


def _seen(fragments: Fragments, chair: Chair, number: int) -> Tensor:
    """Samples (H s, W s) that see a part."""
    return fragments.grid(torch.from_numpy(chair.face_part == number)[fragments.face.long()], False)


def _pixels(samples: Tensor, s: int) -> np.ndarray:
    """Pixels with any sample that is set."""
    pixels: np.ndarray = samples.unflatten(0, (-1, s)).unflatten(2, (-1, s)).any(3).any(1).numpy()
    return pixels


def _varied(color: Color, rng: np.random.Generator) -> Color:
    red, green, blue = np.clip(np.array(color) * rng.uniform(0.8, 1.2, 3), 0.05, 0.85).tolist()
    return red, green, blue
