# SPDX-License-Identifier: Apache-2.0
"""Rendering of clouds on a grid, resampling, and both published layouts, written and read."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings, render_organized, render_unorganized, resample
from anomalib_pose.data.point_cloud.rendered_layout import (
    index_entry,
    read_rendered,
    write_index,
    write_original,
    write_rendered,
)

SIZE = 20
SETTINGS = RenderSettings(size=SIZE)


def dome(height=30, width=30):
    """Organized points on a dome above nothing, its photograph, and a defect on it."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    inside = x**2 + y**2 < 0.8
    xyz = torch.stack([x, y, 3 - (1 - x**2 - y**2).clamp_min(0).sqrt()], -1) * 0.05
    mask = ((x - 0.3) ** 2 + (y - 0.1) ** 2 < 0.1).float()
    rgb = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return torch.where(inside[..., None], xyz, 0), mask, rgb


def same(a, b):
    for field in fields(a):
        value, expected = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, field.name


def test_grid_is_the_nearest_cells_and_pixels_are_where_points_project():
    xyz, mask, rgb = dome()
    cloud = render_organized(xyz, replace(SETTINGS, about_x=(0.0,), about_y=()), mask, rgb)
    index = [i * 30 // SIZE for i in range(SIZE)]
    assert torch.equal(cloud.points, xyz[index][:, index])
    assert torch.equal(cloud.valid, cloud.points[..., 2] != 0)
    assert cloud.organized
    points = cloud.points[cloud.valid].double().numpy() * [1, -1, -1]
    center = (points.min(0) + points.max(0)) / 2
    distance = 0.7 * (points.max(0) - points.min(0)).max() / math.tan(math.pi / 6)
    scale = 512 / math.tan(math.pi / 6) / (distance - (points - center)[:, 2])
    expected = np.stack([511.5 - (points - center)[:, 1] * scale, 511.5 + (points - center)[:, 0] * scale], 1)
    cells = cloud.valid.flatten()
    np.testing.assert_array_equal(cloud.pixels[0, cells].numpy(), (expected * SIZE / 1024).astype(int))
    assert not cloud.visible[:, ~cells].any()
    assert (cloud.pixels[:, ~cells] == 0).all()
    assert cloud.views.dtype == torch.uint8
    mask_center = cloud.view_masks[0].nonzero().float().mean(0)
    defect_center = cloud.pixels[0, (cloud.gt_mask & cloud.valid).flatten()].float().mean(0)
    torch.testing.assert_close(mask_center, defect_center, atol=0.6, rtol=0)


def test_the_tilt_rotates_the_cloud_before_the_views_rotations():
    xyz, mask, _ = dome()
    tilted = render_organized(xyz, replace(SETTINGS, tilt=30.0, about_x=(0.0,), about_y=()), mask)
    turned = render_organized(xyz, replace(SETTINGS, about_x=(30.0,), about_y=()), mask)
    assert (tilted.pixels - turned.pixels).abs().max() <= 1
    assert (tilted.view_masks != turned.view_masks).float().mean() < 0.01


@pytest.mark.parametrize("views", [5, 9, 11])
def test_clouds_are_rendered_in_5_9_or_11_views(views):
    assert len(render_organized(dome()[0], RenderSettings.of_views(views, size=SIZE)).views) == views


def test_other_numbers_of_views_are_refused():
    with pytest.raises(ValueError, match="5, 9, 11"):
        RenderSettings.of_views(7)


def test_large_clouds_are_reduced_to_evenly_spread_points():
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(4000, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0])
    points = torch.cat([points, torch.rand(4000, 3, generator=rng) * torch.tensor([0.1, 0.1, 0.0])])  # a dense corner
    labels = points[:, 0] > 0.5
    selected, selected_labels = resample(points, labels, 400, seed=1)
    assert len(selected) == 400
    assert torch.equal(selected_labels, selected[:, 0] > 0.5)
    assert ((selected[:, None] - points[None]).norm(dim=-1).amin(1) == 0).all()
    assert (selected[:, :2] < 0.1).all(1).sum() < 20  # 1 % of the area has few of the points
    gaps = torch.cdist(points[:4000], selected).amin(1)
    assert gaps.max() < 0.12
    assert torch.equal(resample(points, labels, 400, seed=1)[0], selected)
    assert not torch.equal(resample(points, labels, 400, seed=2)[0], selected)


def test_small_clouds_get_additional_points_between_neighbors():
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    labels = points[:, 0] > 0.5
    more, more_labels = resample(points, labels, 100)
    assert torch.equal(more[:60], points)
    assert torch.equal(more_labels[:60], labels)
    old, added = points.numpy(), more[60:].numpy()
    order = np.linalg.norm(old[:, None] - old[None], axis=-1).argsort(1)[:, 1:4]
    between = [
        (old[i] + share * (old[j] - old[i]), labels[i if share <= 0.5 else j])
        for i in range(60)
        for j in order[i]
        for share in (0.25, 0.5, 0.75)
    ]
    for point, label in zip(added, more_labels[60:], strict=True):
        assert any(np.abs(position - point).max() < 1e-6 and label == expected for position, expected in between)


def test_duplicates_and_single_points():
    points = torch.ones(500, 3)
    points[:2] = 0
    assert len(resample(points, torch.zeros(500, dtype=torch.bool), 100)[0]) == 100
    with pytest.raises(ValueError, match="two or more"):
        resample(points[:1], torch.zeros(1, dtype=torch.bool), 4)


@pytest.mark.parametrize("views", [9, 11])
def test_organized_layout_is_read_as_it_was_written(tmp_path, views):
    xyz, mask, rgb = dome(SIZE, SIZE)
    rgb = (rgb * 255).round() / 255
    cloud = render_organized(xyz, RenderSettings.of_views(views, size=SIZE), mask, rgb)
    folder = tmp_path / "dome" / "test" / "bent"
    write_rendered(folder, "007", cloud)
    write_original(folder, "007", xyz, rgb, mask)
    same(read_rendered(folder, "007", SIZE), cloud)


def test_views_are_in_the_order_of_their_numbers(tmp_path):
    xyz, mask, rgb = dome(SIZE, SIZE)
    rgb = (rgb * 255).round() / 255
    cloud = render_organized(xyz, RenderSettings.of_views(11, size=SIZE), mask, rgb)
    write_rendered(tmp_path, "007", cloud)
    write_original(tmp_path, "007", xyz, rgb, mask)
    for path in sorted(tmp_path.rglob("view_0*")):  # the published files are not padded: view_10 sorts before view_2
        path.rename(path.with_name(path.name.replace("view_0", "view_")))
    same(read_rendered(tmp_path, "007", SIZE), cloud)


def test_organized_layout_has_the_published_files(tmp_path):
    xyz, mask, rgb = dome()
    cloud = render_organized(xyz, SETTINGS, mask, rgb)
    folder = tmp_path / "dome" / "test" / "bent"
    write_rendered(folder, "007", cloud)
    write_original(folder, "007", xyz, rgb, mask)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    expected = ["2d_3d_cor/007/nonzero_indices.npy", "gt/007.png", "gt_pcd/007.pcd", "rgb/007.png", "xyz/007.tiff"]
    for k in range(9):
        expected += [f"2d_rendering/007/view_{k}.png", f"2d_gt/007/view_{k}_gt.png", f"2d_3d_cor/007/view_{k}_cor.npy"]
    assert paths == sorted(expected)
    cells = np.load(folder / "2d_3d_cor/007/nonzero_indices.npy", allow_pickle=False)
    flat = cloud.points.reshape(-1, 3)
    np.testing.assert_array_equal(cells, np.flatnonzero(flat[:, 2].numpy()))
    table = np.load(folder / "2d_3d_cor/007/view_3_cor.npy", allow_pickle=False)
    assert (table.dtype, table.shape) == (np.int64, (len(cells), 3))
    for row, cell in zip(table, cells, strict=True):
        y, x = cloud.pixels[3, cell].tolist()
        assert row.tolist() == [x, y, int(cloud.visible[3, cell])]
    assert np.asarray(Image.open(folder / "2d_gt/007/view_0_gt.png")).shape == (SIZE, SIZE, 3)


def test_unorganized_layout_is_read_as_it_was_written(tmp_path):
    points = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    points = torch.nn.functional.normalize(points, dim=1) + 1
    cloud = render_unorganized(points, points[:, 0] > 1.5, SETTINGS)
    assert not cloud.organized
    assert cloud.gt_mask.any()
    folder = tmp_path / "ball" / "test" / "anomaly"
    write_rendered(folder, "7_bulge", cloud)
    assert not list(folder.rglob("nonzero_indices.npy"))
    same(read_rendered(folder, "7_bulge", SIZE), cloud)


def test_index_names_existing_files(tmp_path):
    xyz, mask, rgb = dome()
    folder = tmp_path / "dome" / "test" / "bent"
    write_rendered(folder, "007", render_organized(xyz, SETTINGS, mask, rgb))
    write_original(folder, "007", xyz, rgb, mask)
    entry = index_entry(tmp_path, folder, "007")
    write_index(tmp_path, {"dome": [entry]})
    for name in ("dome", "all"):
        content = json.loads((tmp_path / f"{name}_meta.json").read_text())
        assert content == {"train": {}, "test": {"dome": [entry]}}
    assert (entry["cls_name"], entry["specie_name"], entry["anomaly"]) == ("dome", "bent", 1)
    assert sorted(key for key, value in entry.items() if "/" in str(value)) == [
        "d2_corrdinate",
        "d2_img_path",
        "d2_mask_path",
        "d2_render_gt_path",
        "d2_render_img_path",
        "d3_pc",
    ]
    assert all((tmp_path / value).exists() for value in entry.values() if "/" in str(value))


def change_array(path, change):
    np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "2d_rendering/007/view_4.png").unlink(), "8 views, 9 masks"),
        (lambda f: np.save(f / "2d_3d_cor/007/view_4_cor.npy", np.zeros((3, 3), np.int64)), r"view_4_cor.*\(3, 3\)"),
        (lambda f: np.save(f / "2d_3d_cor/007/nonzero_indices.npy", np.array([SIZE**2])), "nonzero_indices"),
        (lambda f: np.save(f / "2d_3d_cor/007/view_0_cor.npy", np.array([{}], dtype=object)), "array of integers"),
        (lambda f: np.save(f / "2d_3d_cor/007/view_0_cor.npy", np.zeros(3)), "array of integers"),
        (lambda f: (f / "2d_3d_cor/007/view_0_cor.npy").write_bytes(b""), "view_0_cor"),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "2d_gt/007/view_0_gt.png"), "9 x 9"),
        (
            lambda f: Image.new("RGB", (SIZE, SIZE), "white").save(f / "2d_rendering/007/view_2.png"),
            "View 2 .* is blank",
        ),
        (
            lambda f: change_array(f / "2d_3d_cor/007/view_1_cor.npy", lambda table: table * [1, 1, 0]),
            "View 1 .* no points",
        ),
        (
            lambda f: change_array(f / "2d_3d_cor/007/view_1_cor.npy", lambda table: table * 0 + 1),
            "View 1 .* no points",
        ),
        (lambda f: [path.unlink() for path in list(f.rglob("view_4*"))], "consecutive"),
        (
            lambda f: tifffile.imwrite(f / "xyz/007.tiff", np.roll(tifffile.imread(f / "xyz/007.tiff"), 9, 0)),
            "no point",
        ),
        (lambda f: Image.new("RGB", (9, 20)).save(f / "rgb/007.png"), "007.png.*aspect"),
    ],
)
def test_inconsistent_renderings_are_refused(tmp_path, spoil, words):
    xyz, mask, rgb = dome()
    write_rendered(tmp_path, "007", render_organized(xyz, SETTINGS, mask, rgb))
    write_original(tmp_path, "007", xyz, rgb, mask)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=words):
        read_rendered(tmp_path, "007", SIZE)


def test_missing_views_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="anomalib-pose render-clouds"):
        read_rendered(tmp_path, "007", SIZE)
