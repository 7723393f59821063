# SPDX-License-Identifier: Apache-2.0
import torch

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.scene.foreground import boundary_band, white_foreground
from anomalib_pose.scene.hull import ball_of_cameras, colors_of_points, visual_hull

CENTER = torch.tensor([0.2, -0.1, 0.3])


def cameras_around(count: int = 24, radius: float = 3.0) -> Camera:
    poses = view_sphere(count, radius)
    poses[:, :3, 3] += CENTER
    return Camera.from_fov(poses, 0.7, 64, 64)


def ball_masks(cameras: Camera, radius: float) -> torch.Tensor:
    """Mark the pixels whose ray hits a ball, by the ray's distance from its center."""
    ticks = torch.arange(64) + 0.5
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    masks = []
    for index in range(len(cameras)):
        camera = cameras[index]
        rays = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(camera.K).T
        rays = torch.nn.functional.normalize(rays, dim=-1) @ camera.camera_to_world[:3, :3].T
        offset = CENTER - camera.center
        masks.append(((offset - (rays @ offset)[..., None] * rays).norm(dim=-1) < radius).float())
    return torch.stack(masks)


def test_ball_of_cameras_has_the_viewed_point_and_fits_the_images():
    center, radius = ball_of_cameras(cameras_around())
    torch.testing.assert_close(center, CENTER, atol=1e-4, rtol=0)
    assert abs(radius - 3 * torch.sin(torch.tensor(0.35)).item()) < 1e-3


def test_surface_voxels_of_a_balls_hull_lie_on_the_ball():
    cameras = cameras_around(60)
    surface, side = visual_hull(cameras, ball_masks(cameras, 0.6), CENTER, 1.0, resolution=48)
    distance = (surface - CENTER).norm(dim=-1)
    assert distance.min() > 0.6 - 2.5 * side
    assert distance.max() < 0.6 + 4 * side
    assert abs(distance.median() - 0.6) < 1.5 * side


def test_hull_of_empty_masks_is_none():
    cameras = cameras_around()
    assert visual_hull(cameras, torch.zeros(24, 64, 64), CENTER, 1.0) is None


def test_colors_of_points_equal_the_colors_of_their_pixels():
    cameras = cameras_around()
    images = torch.zeros(24, 3, 64, 64)
    images[:, 0], images[:, 2] = 0.25, 0.75
    colors = colors_of_points(CENTER + 0.1 * torch.randn(5, 3), cameras, images)
    torch.testing.assert_close(colors, torch.tensor([[0.25, 0.0, 0.75]]).expand(5, 3))


def test_white_foreground_keeps_white_parts_and_opens_holes():
    image = torch.ones(1, 3, 60, 60)
    image[:, :, 5:55, 5:55] = 0.2
    image[:, :, 8:12, 8:22] = torch.linspace(0.991, 1, 14)  # a white part of the object
    image[:, :, 20:30, 20:30] = 1.0
    image[:, :, 40, 40] = 1.0  # a highlight
    image[:, :, 20, 20:30] = 0.995  # pixels at the rim of the hole are mixed with the object
    expected = torch.zeros(1, 60, 60)
    expected[:, 5:55, 5:55] = 1
    expected[:, 20:30, 20:30] = 0
    torch.testing.assert_close(white_foreground(image), expected)
    assert white_foreground(torch.full((1, 3, 20, 20), 0.5)) is None


def test_boundary_band_lies_on_both_sides_of_the_silhouette():
    mask = torch.zeros(9, 9)
    mask[3:6, 3:6] = 1
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = 1
    expected[4, 4] = 0
    torch.testing.assert_close(boundary_band(mask), expected)
