# SPDX-License-Identifier: Apache-2.0
"""Rendered chairs: published layout, correct boxes and masks, cuts in closed form, equal files for equal seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import find_objects

from anomalib_pose.cli import run_command
from anomalib_pose.data.reference_views.broken_chairs_files import ANOMALY_TYPES, find_queries, split_queries
from anomalib_pose.data.reference_views.files import find_reference_views
from anomalib_pose.render.mesh import rasterize_mesh
from anomalib_pose.render.mesh_lighting import BakedLight, Light
from anomalib_pose.sample_data.bricks import Solid, box, subdivide
from anomalib_pose.sample_data.chair_anomalies import break_chair, cut_out, inside
from anomalib_pose.sample_data.chair_parts import build_chair
from anomalib_pose.sample_data.chair_views import Material, QueryPose, anomaly_masks, published_mesh, render_query
from anomalib_pose.sample_data.chairs import write_chairs

SHAPES, QUERIES, SIZE, VIEWS, SEED = 3, 4, 128, 12, 1


@pytest.fixture
def folder(chairs: Path) -> Path:
    return chairs


def test_layout_is_the_published_one(folder: Path) -> None:
    queries = find_queries(folder)
    assert len(queries) == SHAPES * QUERIES
    kinds = [query.kind for query in queries]
    assert kinds.count("good") == SHAPES * QUERIES // 2
    assert {kind for kind in kinds if kind != "good"} == set(ANOMALY_TYPES)
    parts = split_queries(folder, queries)
    shapes = {name: {query.shape_id for query in part} for name, part in parts.items()}
    assert shapes == {"train": {"0"}, "val": {"1"}, "test": {"2"}}
    for number in range(SHAPES):
        assert len(find_reference_views(folder / "shapes" / f"shape_{number}" / "mv_images")) == VIEWS
    for query in queries:
        with Image.open(query.image_path) as image:
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
        _, shape, _, radius, azimuth, elevation, light, label = query.image_path.stem.split("_", 7)
        assert shape == query.shape_id
        assert 2.9 <= float(radius) <= 3.5
        assert (0 <= int(azimuth) < 360, 5 <= int(elevation) <= 45, 0 <= int(light) < 6) == (True, True, True)
        assert label == ("normal" if query.kind == "good" else f"anomaly_{query.kind}")


def test_boxes_and_types_agree_with_masks_and_names(folder: Path) -> None:
    for query in find_queries(folder):
        if query.kind == "good":
            assert not query.mask_paths
            continue
        names = [path.name[:9] for path in query.mask_paths]
        assert names == (["mask_new_"] if query.kind == "missing" else ["mask_new_", "mask_old_"])
        masks = np.stack([np.asarray(Image.open(path)) > 0 for path in query.mask_paths])
        rows, columns = find_objects(masks.any(0).astype(int))[0]
        note = json.loads(query.annotation_path.read_text())
        expected = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        assert note["2d_bbox"] == pytest.approx([side * 512 / SIZE for side in expected])
        overlap = 0 if len(masks) == 1 else masks.all(0).sum() / masks.any(0).sum()
        assert note["IoU"] == pytest.approx(overlap)
        assert note["config"]["type"] == ANOMALY_TYPES.index(query.kind) + 1


def test_query_silhouettes_agree_with_the_stored_cameras(folder: Path) -> None:
    """The chair's silhouette, from its mesh and the camera of the annotation, is where the image is not white."""
    checked = 0
    for query in find_queries(folder):
        if query.kind == "good":
            continue
        camera = json.loads(query.annotation_path.read_text())["camera"]
        chair = build_chair(np.random.default_rng([SEED, 0, int(query.shape_id)]))
        points = published_mesh(chair).vertices.double().numpy()
        in_camera = np.array(camera["RT"]) @ np.column_stack([points, np.ones(len(points))]).T
        u, v, w = np.array(camera["K"]) @ in_camera[:3]
        row, column = np.floor(v / w).astype(int), np.floor(SIZE - u / w).astype(int)
        changed = np.any([np.asarray(Image.open(path)) > 0 for path in query.mask_paths], axis=0)
        image = np.asarray(Image.open(query.image_path)).min(2)
        unchanged = ~changed[row.clip(0, SIZE - 1), column.clip(0, SIZE - 1)]
        covered = image[row[unchanged].clip(0, SIZE - 1), column[unchanged].clip(0, SIZE - 1)] < 250
        assert covered.mean() > 0.97
        checked += 1
    assert checked == SHAPES * QUERIES // 2


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first, repeated, different = (
        write_chairs(tmp_path / name, 3, queries, seed, size=64, views=1, progress=False)
        for name, queries, seed in (("first", 2, 7), ("repeated", 2, 7), ("different", 1, 8))
    )
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(repeated) for path in repeated.rglob("*") if path.is_file())
    assert all((first / file).read_bytes() == (repeated / file).read_bytes() for file in files)
    view = "shapes/shape_0/mv_images/0_3.0_0_20.png"
    assert (first / view).read_bytes() != (different / view).read_bytes()


def test_wrong_numbers_and_folders_that_exist_are_refused(folder: Path, tmp_path: Path) -> None:
    for options in ({"shapes": 2}, {"queries": 0}, {"size": 32}, {"views": 0}):
        with pytest.raises(ValueError, match="shapes has to be 3 or more"):
            write_chairs(tmp_path / "new", **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="exists already"):
        write_chairs(folder, 3, 1, progress=False)


def test_the_command_writes_chairs(tmp_path: Path, capsys) -> None:
    numbers = ["--shapes", "3", "--queries", "1", "--views", "1", "--size", "64"]
    run_command("sample", ["chairs", str(tmp_path / "chairs"), *numbers])
    assert len(find_queries(tmp_path / "chairs")) == 3
    with pytest.raises(SystemExit, match="1"):
        run_command("sample", ["chairs", str(tmp_path / "chairs")])
    assert "exists already" in capsys.readouterr().err


def test_chairs_fit_into_their_views_and_stand_upright() -> None:
    for seed in range(12):
        chair = build_chair(np.random.default_rng(seed))
        vertices = published_mesh(chair).vertices.numpy()
        assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(0.9, abs=1e-5)
        np.testing.assert_allclose(vertices.min(0) + vertices.max(0), 0, atol=1e-5)
        roles = np.array([part.role for part in chair.parts])[chair.face_part]
        middle = vertices[chair.mesh.faces.numpy()].mean(1)[:, 1]
        assert middle[roles == "Leg"].max() < middle[roles == "SeatSurface"].max() < middle.max()


def test_all_changes_are_inside_the_mask() -> None:
    """In uniform light, whole and broken chair differ only inside the mask."""
    chair, donor = build_chair(np.random.default_rng(3)), build_chair(np.random.default_rng(4))
    plain = Material((0.2, 0.3, 0.4), (0, 0, 0), "plain", 1.0)
    light = Light(specular=0.0)
    rng = np.random.default_rng(0)
    visible_count = 0
    for trial in range(20):
        kind = ANOMALY_TYPES[trial % 5]
        anomaly, pose = break_chair(chair, kind, donor, rng), QueryPose.random(rng, 96)
        masks = None if anomaly is None else anomaly_masks(chair, anomaly, pose.chair_camera)
        if masks is None:
            continue
        images = []
        for variant in (chair, anomaly.chair):
            uniform = BakedLight(torch.ones(len(variant.mesh.vertices), 3), torch.zeros(len(variant.mesh.vertices)))
            images.append(render_query(variant, (plain, plain), pose.chair_camera, light, uniform).astype(int))
        differs = np.abs(images[0] - images[1]).max(2) > 1
        assert not (differs & ~masks.union).any()
        # The image has to change where the part of either chair is in front of white.
        against_white = masks.union & ((images[0] == 255).all(2) | (images[1] == 255).all(2))
        assert not (against_white & ~differs).any()
        # The mask has to contain all changes of depth, independent of colors.
        depths = [rasterize_mesh(variant.mesh, pose.chair_camera, 1) for variant in (chair, anomaly.chair)]
        before, after = (depth.grid(depth.depth, 0.0).numpy() for depth in depths)
        assert not ((np.abs(before - after) > 0.021) & ~masks.union).any()
        visible_count += 1
    assert visible_count > 5


def test_invisible_anomalies_are_refused() -> None:
    chair = build_chair(np.random.default_rng(3))
    pose = QueryPose.random(np.random.default_rng(0), 96)
    for number in range(len(chair.parts)):
        anomaly = break_chair(chair, "missing", chair, np.random.default_rng(number))
        on_part = (chair.face_part == anomaly.number)[rasterize_mesh(chair.mesh, pose.chair_camera, 1).face]
        masks = anomaly_masks(chair, anomaly, pose.chair_camera)
        area = float(on_part.sum()) / 96**2
        if not 0.0015 < area < 0.0025:  # between the bounds, samples at the part's edge decide
            assert (masks is None) == (area < 0.002)


def area(solid: Solid) -> np.ndarray:
    corners = solid.vertices[solid.faces]
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2


def test_cutting_out_a_ball_adds_half_a_sphere_and_removes_a_disc() -> None:
    radius = 0.3
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    points = [
        [radius * np.cos(h) * np.cos(a), radius * np.cos(h) * np.sin(a), radius * np.sin(h)]
        for h in np.linspace(-np.pi / 2, np.pi / 2, 25)
        for a in angle
    ]
    rows, columns = np.arange(24)[:, None], np.arange(32)[None]
    corner = [(rows + i) * 32 + (columns + j) % 32 for i, j in ((0, 0), (0, 1), (1, 1), (1, 0))]
    faces = np.concatenate([np.stack(c, -1).reshape(-1, 3) for c in (corner[:3], [corner[0], corner[2], corner[3]])])
    ball = Solid(np.array(points), faces.astype(np.int32), np.array(points) / radius)
    block = box((-0.4, -0.4, -0.4), (0.4, 0.4, 0.0), 0.0)  # the ball's center is on its top
    cut, share = cut_out((block,), ball)
    total = 2 * 0.64 + 4 * 0.32
    assert share == pytest.approx(np.pi * radius**2 / total, rel=0.05)
    inner = (np.abs(np.linalg.norm(cut.vertices[cut.faces], axis=2) - radius) < 1e-6).all(1)
    assert area(cut)[inner].sum() == pytest.approx(2 * np.pi * radius**2, rel=0.05)
    assert area(cut)[~inner].sum() == pytest.approx(total - np.pi * radius**2, rel=0.02)
    # The normals of the new surface point into the cavity.
    facing = (cut.normals[cut.faces[inner]] * cut.vertices[cut.faces[inner]]).sum(-1)
    assert facing.max() < 0


def test_inside_of_a_rotated_box_equals_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    plain = subdivide(box((-0.3, -0.2, -0.4), (0.3, 0.2, 0.4), 0.0), 0.3)
    solid = Solid(plain.vertices @ rotation.T + 1, plain.faces, plain.normals @ rotation.T)
    points = rng.uniform(-0.6, 0.6, (2000, 3))
    expected = (np.abs(points) < [0.3, 0.2, 0.4]).all(1)
    np.testing.assert_array_equal(inside(solid, points @ rotation.T + 1), expected)


def test_each_kind_changes_one_part_as_its_name_says() -> None:
    chair, donor = build_chair(np.random.default_rng(3)), build_chair(np.random.default_rng(5))
    for kind in ANOMALY_TYPES:
        anomaly = next(
            candidate
            for seed in range(50)
            if (candidate := break_chair(chair, kind, donor, np.random.default_rng(seed)))
        )
        whole_part, broken_part = chair.parts[anomaly.number], anomaly.chair.parts[anomaly.number]
        unchanged_parts = [
            (a, b) for i, (a, b) in enumerate(zip(chair.parts, anomaly.chair.parts, strict=True)) if i != anomaly.number
        ]
        assert all(a is b for a, b in unchanged_parts)
        if kind == "missing":
            assert broken_part is None
            continue
        before, after = (vertices_of(variant, anomaly.number) for variant in (chair, anomaly.chair))
        if kind == "position":
            moved = after - before
            np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-5)
            assert 0.06 < np.linalg.norm(moved[0]) < 0.3
        if kind == "rotation":
            rotation = broken_part.rotation
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
            assert 12 <= np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) <= 45
            middle = np.add(*whole_part.bounds) / 2
            np.testing.assert_allclose(after, (before - middle) @ rotation.T + middle, atol=1e-5)
        if kind == "swapped":
            assert broken_part.role == whole_part.role
            np.testing.assert_allclose(np.add(*broken_part.bounds), np.add(*whole_part.bounds), atol=1e-9)
            assert len(broken_part.solids) != len(whole_part.solids) or any(
                a.vertices.shape != b.vertices.shape or np.abs(a.vertices - b.vertices).max() > 1e-3
                for a, b in zip(whole_part.solids, broken_part.solids, strict=True)
            )
        if kind == "damaged":
            assert broken_part.cut is not None
            assert broken_part.solids is whole_part.solids


def vertices_of(chair, number: int) -> np.ndarray:
    return chair.mesh.vertices.numpy()[np.unique(chair.mesh.faces.numpy()[chair.face_part == number])]
