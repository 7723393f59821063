# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import PosedFolder, read_colmap, read_colmap_points
from anomalib_pose.data.posed.colmap import find_colmap
from anomalib_pose.geometry import Camera

pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")

# name: quaternion wxyz and translation of world to camera, and the camera's number
IMAGES = {
    "b.png": ((0.8, 0.1, -0.5, 0.3), (0.1, -0.2, 4.0), 1),
    "a.png": ((0.2, 0.7, 0.1, -0.6), (0.3, 0.4, 5.0), 2),
    "sub/c.png": ((1.0, 0.0, 0.0, 0.0), (-0.5, 0.1, 3.0), 1),
}
CAMERAS = {1: ("PINHOLE", 40, 30, (50.0, 44.0, 21.0, 13.5)), 2: ("SIMPLE_PINHOLE", 20, 24, (31.0, 9.0, 12.5))}
POINTS = np.array([[0.1, 0.2, 0.3], [-0.4, 0.1, 0.5], [0.3, -0.6, -0.2]])
COLORS = np.array([[255, 0, 51], [102, 204, 0], [7, 8, 9]])


def _rotation(quaternion):
    """The matrix of COLMAP's Hamilton quaternion wxyz, written out."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _colmap_projection(name):
    """Where COLMAP's documented formula puts the points, in pixels of the camera."""
    quaternion, translation, camera = IMAGES[name]
    x, y, z = (POINTS @ _rotation(quaternion).T + np.array(translation)).T
    model, _, _, values = CAMERAS[camera]
    fx, fy, cx, cy = values if model == "PINHOLE" else (values[0], *values)
    return np.stack([fx * x / z + cx, fy * y / z + cy], 1), z


def _text_model(folder, images=None, cameras=None, digits=17):
    images, cameras = IMAGES if images is None else images, CAMERAS if cameras is None else cameras
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list"] + [
        f"{n} {m} {w} {h} " + " ".join(map(str, values)) for n, (m, w, h, values) in cameras.items()
    ]
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Image list"]
    for number, (name, (quaternion, translation, camera)) in enumerate(images.items(), 1):
        unit = np.array(quaternion) / np.linalg.norm(quaternion)
        values = " ".join(f"{v:.{digits}f}" for v in (*unit, *translation))
        lines += [f"{number} {values} {camera} {name}", "12.5 3.5 -1"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = [
        f"{9 - i} " + " ".join(map(str, [*p, *c])) + " 0.5" for i, (p, c) in enumerate(zip(POINTS, COLORS, strict=True))
    ]
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")
    return folder


def _save(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Three photographs of two cameras, with a text model."""
    for name, (_, _, camera) in IMAGES.items():
        _save(tmp_path / "images" / name, *CAMERAS[camera][1:3])
    _text_model(tmp_path / "sparse" / "0")
    return tmp_path


def _frames(root):
    return read_colmap(root / "sparse" / "0", root / "images")


def test_points_project_where_colmaps_formula_puts_them(root):
    frames = _frames(root)
    names = [frame.image_path.relative_to(root / "images").as_posix() for frame in frames]
    assert names == ["a.png", "b.png", "sub/c.png"]
    for name, frame in zip(names, frames, strict=True):
        camera = Camera(frame.camera_to_world, frame.K, frame.width, frame.height)
        uv, depth = camera.project(torch.from_numpy(POINTS))
        expected, expected_depth = _colmap_projection(name)
        np.testing.assert_allclose(uv, expected, atol=1e-9)
        np.testing.assert_allclose(depth, expected_depth, atol=1e-12)
        assert frame.distortion == ()
        assert frame.mask_path is None


def test_points_project_where_pycolmap_puts_them(root):
    images = {image.name: image for image in pycolmap.Reconstruction(root / "sparse" / "0").images.values()}
    for frame in _frames(root):
        image = images[frame.image_path.relative_to(root / "images").as_posix()]
        uv, _ = Camera(frame.camera_to_world, frame.K, 1, 1).project(torch.from_numpy(POINTS))
        np.testing.assert_allclose(uv, [image.project_point(point) for point in POINTS], atol=1e-9)


def _written_binary(root):
    text = root / "sparse" / "0"
    binary = root / "binary"
    binary.mkdir()
    pycolmap.Reconstruction(text).write_binary(binary)
    return binary


@pytest.mark.parametrize("before_rigs", [False, True])
def test_a_binary_model_is_read_as_its_text(root, before_rigs):
    binary = _written_binary(root)
    for name in ("rigs.bin", "frames.bin") if before_rigs else ():  # older versions of COLMAP do not write them
        (binary / name).unlink()
    for from_text, from_binary in zip(_frames(root), read_colmap(binary, root / "images"), strict=True):
        assert from_text.image_path == from_binary.image_path
        assert torch.allclose(from_text.camera_to_world, from_binary.camera_to_world, atol=1e-12)
        assert torch.equal(from_text.K, from_binary.K)
    for from_text, from_binary in zip(read_colmap_points(root / "sparse/0"), read_colmap_points(binary), strict=True):
        assert torch.equal(from_text, from_binary)


def test_points_come_with_their_colors(root):
    positions, colors = read_colmap_points(root / "sparse" / "0")
    np.testing.assert_array_equal(positions, POINTS[::-1])
    np.testing.assert_allclose(colors, COLORS[::-1] / 255)
    (root / "sparse" / "0" / "points3D.txt").write_text("")
    positions, colors = read_colmap_points(root / "sparse" / "0")
    assert positions.shape == colors.shape == (0, 3)


def test_intrinsics_are_scaled_to_the_stored_size_axis_by_axis(root):
    _save(root / "images" / "b.png", 80, 61)
    frame = _frames(root)[1]
    down = 61 / 30
    expected = torch.tensor([[100.0, 0, 42], [0, 44 * down, 13.5 * down], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(frame.K, expected)


def test_rounded_quaternions_give_rotations(root):
    _text_model(root / "sparse" / "0", digits=4)
    for frame in _frames(root):
        rotation = frame.camera_to_world[:3, :3]
        assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
        quaternion = IMAGES[frame.image_path.relative_to(root / "images").as_posix()][0]
        np.testing.assert_allclose(rotation.T, _rotation(quaternion), atol=5e-4)


def _camera(*camera):
    return lambda root: _text_model(root / "sparse/0", cameras={**CAMERAS, 1: camera})


def _image(name, quaternion=(1, 0, 0, 0), camera=1):
    return lambda root: _text_model(root / "sparse/0", {**IMAGES, name: (quaternion, (0, 0, 3), camera)})


def _pose(values):
    def spoil(root):
        path = root / "sparse/0/images.txt"
        path.write_text(f"1 {values} 1 b.png\n\n")

    return spoil


def _repeat(root):
    path = root / "sparse/0/images.txt"
    path.write_text(path.read_text() + "4 1 0 0 0 0 0 3 1 b.png\n\n")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda r: [(r / f"images/{name}.png").unlink() for name in ("a", "b")],
            FileNotFoundError,
            r"sparse/0 names images that do not exist in .*images: 2 of 3 \(a\.png, b\.png\)",
        ),
        (lambda r: (r / "images/a.png").write_bytes(b""), ValueError, r"images/a\.png is empty"),
        (lambda r: _save(r / "images/b.png", 30, 30), ValueError, r"b\.png', has a camera of 40 x 30, but .* 30 x 30"),
        (_camera("OPENCV_FISHEYE", 40, 30, (50, 44, 21, 13, 0, 0, 0, 0)), ValueError, r"b\.png'.*image_undistorter"),
        (_camera("SIMPLE_RADIAL_FISHEYE", 40, 30, (50, 21, 13, 0)), ValueError, r"model SIMPLE_RADIAL_FISHEYE: "),
        (_camera("RADIAL_FISHEYE", 40, 30, (50, 21, 13, 0, 0)), ValueError, r"model RADIAL_FISHEYE: "),
        (_camera("FOV", 40, 30, (50, 44, 21, 13, 0)), ValueError, r"model FOV: .*Undistort first"),
        (_camera("THIN_PRISM_FISHEYE", 40, 30, (50, 44, 21, 13, *[0.1] * 8)), ValueError, r"THIN_PRISM_FISHEYE: "),
        (_camera("OPENCV", 40, 30, (50, 44, 21, 13, "nan", 0, 0, 0)), ValueError, r"finite intrinsics|cannot be read"),
        (_camera("OPENCV", 40, 30, (50, 44, 21, 13, 0.1)), ValueError, r"sparse/0 .*cannot be read"),
        (_camera("LENS", 40, 30, (50, 44, 21, 13)), ValueError, r"sparse/0 .*cannot be read"),
        (_camera("PINHOLE", 40, 30, (-50, 44, 21, 13)), ValueError, r"focal lengths above 0, got \[-50\.0"),
        (_camera("PINHOLE", 40, 30, (50, 44)), ValueError, r"sparse/0 \(cameras\.txt, .*cannot be read"),
        (_pose("0 0 0 0 0 0 3"), ValueError, r"image 'b\.png', has a pose with a quaternion of norm 0: expected 1"),
        (_pose("1 0 0 0 0 0 1e999"), ValueError, r"(has a pose with NaN or infinite|images\.txt.* cannot be read)"),
        (_image("b.png", camera=7), ValueError, r"sparse/0 \(.*images\.txt.*cannot be read"),
        (_repeat, ValueError, r"sparse/0 has two frames with the image .*b\.png and different"),
        (lambda r: _text_model(r / "sparse/0", {}), ValueError, r"model .*sparse/0 has no images"),
        (lambda r: (r / "sparse/0/images.txt").write_text("who knows\n"), ValueError, r"sparse/0 .*cannot be read"),
        (lambda r: (r / "sparse/0/points3D.txt").unlink(), FileNotFoundError, r"sparse/0.*missing: points3D\.txt"),
        (
            lambda r: (r / "sparse/0").rename(r / "elsewhere"),
            FileNotFoundError,
            r"no complete COLMAP model in .*sparse/0",
        ),
    ],
)
def test_bad_models_are_named(root, spoil, error, message):
    spoil(root)
    with pytest.raises(error, match=message):
        _frames(root)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "frames"])
def test_binary_files_that_are_cut_short_are_refused(root, name):
    binary = _written_binary(root)
    whole = (binary / f"{name}.bin").read_bytes()
    for length in range(0, len(whole), 7):
        (binary / f"{name}.bin").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}\.bin is cut short \({length} bytes\)"):
            read_colmap(binary, root / "images")


@pytest.mark.parametrize(("name", "offset"), [("images", 0), ("images", 8 + 64 + 6), ("points3D", 0), ("frames", 0)])
def test_binary_files_with_huge_counts_are_refused(root, name, offset):
    binary = _written_binary(root)
    content = (binary / f"{name}.bin").read_bytes()
    for count in (2**64 - 1, 2**60, 2**40):
        changed = content[:offset] + count.to_bytes(8, "little") + content[offset + 8 :]
        (binary / f"{name}.bin").write_bytes(changed)
        with pytest.raises(ValueError, match=rf"{name}\.bin is cut short"):
            read_colmap(binary, root / "images")


def test_without_pycolmap_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(ImportError, match=r"sparse/0 needs pycolmap: pip install 'anomalib-pose\[colmap\]'"):
        _frames(root)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0"])
def test_models_are_found_in_the_usual_folders(tmp_path, place):
    assert find_colmap(tmp_path) is None
    _text_model(tmp_path / place)
    assert find_colmap(tmp_path) == tmp_path / place


def test_a_posed_folder_reads_a_model(root):
    for image in IMAGES:
        _save(root / "images" / image, 40, 30)
    _text_model(root / "sparse/0", {name: (q, t, 1) for name, (q, t, _) in IMAGES.items()})
    frames = _frames(root)
    datamodule = PosedFolder(root, holdout_every=2, num_workers=0, image_size=20)
    datamodule.setup()
    held_out = {item.image_path.split("images/")[1]: item for item in datamodule.test_data}
    assert sorted(held_out) == ["a.png", "sub/c.png"]
    assert torch.equal(held_out["sub/c.png"].camera_to_world.float(), frames[2].camera_to_world.float())
    assert torch.equal(held_out["a.png"].intrinsics, torch.tensor([[25.0, 0, 10.5], [0, 22, 6.75], [0, 0, 1]]))


def test_a_posed_folder_prefers_its_file(root):
    (root / "transforms.json").write_text("{}")
    with pytest.raises(ValueError, match=r"transforms\.json has no frames"):
        PosedFolder(root).setup()


def test_a_posed_folder_without_poses_names_both_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no transforms\.json in .*, and no COLMAP model in its sparse/0"):
        PosedFolder(tmp_path).setup()
