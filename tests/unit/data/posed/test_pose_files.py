# SPDX-License-Identifier: Apache-2.0
"""Pose files that disagree with the photographs: names of other machines, missing and superfluous images, splits."""

import codecs
import json
import logging
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import MAD, MIP, PosedFolder, read_colmap, read_transforms
from anomalib_pose.data.posed.colmap import find_colmap
from anomalib_pose.data.posed.pose_files import FileFinder
from anomalib_pose.geometry import view_sphere

COUNT = 9
POSES = view_sphere(COUNT, 3.0).double()
POSES[:, :3, :3] = (lambda u, _, v: u @ v)(*torch.linalg.svd(POSES[:, :3, :3]))
MATRICES = (POSES * torch.tensor([1.0, -1, -1, 1])).tolist()


def _save(path, width=16, height=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("images/a.png", "images/a.png"),
        ("images/a.png", "images/a"),
        ("images/a.png", "./images/a.png"),
        ("images/a.png", "images//a.png"),
        ("images/a.png", "images\\a.png"),
        ("images/a.png", ".\\images\\a"),
        ("images/a.png", " images/a.png\r"),
        ("images/a.PNG", "images/a.png"),
        ("images/a.JPG", "images/a"),
        ("Images/a.png", "images/A.PNG"),
        ("images/a b (1).png", "images/a b (1).png"),
        ("images/r_0.001.png", "images/r_0.001"),
        ("images/é.png", unicodedata.normalize("NFD", "images/é.png")),
        ("images/a.png", "/home/someone/cup/images/a.png"),
        ("images/a.png", "C:\\Users\\someone\\cup\\images\\a.png"),
        ("images/a.png", "file:///D:/pictures/a.png"),
        ("images/a.png", "/content/a.png"),
        ("a.png", "/content/images/a.png"),
        ("images/a.png", "a.png"),
        ("images/a.png", "cup/images/a.png"),
        ("images/a.png", "../cup/images/a.png"),
        ("images/a.png", "../images/a.png"),
        ("images/a b.png", "images/a%20b.png"),
        ("images/100%.png", "images/100%.png"),
    ],
)
def test_a_name_of_another_program_or_machine_finds_its_file(tmp_path, file, name):
    folder = tmp_path / "cup"
    _save(folder / "photos/a.png")
    _save(folder / file)
    assert FileFinder(folder).find(name).samefile(folder / file)
    assert FileFinder(folder).key(name) == FileFinder(folder).key(file)


def test_an_absolute_path_that_exists_is_taken(tmp_path):
    _save(tmp_path / "elsewhere/a.png")
    _save(tmp_path / "cup/a.png")
    finder = FileFinder(tmp_path / "cup")
    for name in ("elsewhere/a.png", "elsewhere/a"):
        assert finder.find(str(tmp_path / name)) == tmp_path / "elsewhere/a.png"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["a.png"], "train/a.png"),
        (["images/a.png"], "test/a.png"),
        (["test/a.png"], "train/a.png"),
        (["images/a.png", "images/A.png"], "images/A.PNG"),
        (["images/a.png"], "images"),
        (["images/a.png"], "images/b"),
        (["images/a.png"], "/"),
        (["images/a.png"], "a\0.png"),
        (["images/a.png"], "/a\0.png"),
        (["images/a.png"], "/" + "a" * 5000),
        (["images/a.png"], "../../../../../../../../etc/nothing"),
    ],
)
def test_no_other_file_is_taken_for_a_missing_one(tmp_path, files, name):
    for file in files:
        _save(tmp_path / "cup" / file)
    assert FileFinder(tmp_path / "cup").find(name) is None


# transforms.json


def _content(**shared):
    frames = [{"file_path": f"images/{index}.png", "transform_matrix": matrix} for index, matrix in enumerate(MATRICES)]
    return {"fl_x": 20.0, **shared, "frames": frames}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cup"
    for index in range(COUNT):
        _save(folder / f"images/{index}.png")
    return folder


def _write(root, content, name="transforms.json"):
    (root / name).write_text(json.dumps(content))
    return root / name


def _check(frames, expected):
    """Check the frames' images, and that each has its own pose."""
    assert [int(frame.image_path.stem) for frame in frames] == list(expected)
    for frame in frames:
        torch.testing.assert_close(frame.camera_to_world, POSES[int(frame.image_path.stem)])


def _line(caplog):
    """Return the only warning."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    return lines[0]


def _unlink(*numbers):
    return lambda root, content: [(root / f"images/{number}.png").unlink() for number in numbers]


def _drop(*numbers):
    def change(root, content):
        content["frames"] = [frame for i, frame in enumerate(content["frames"]) if i not in numbers]

    return change


def _without_matrix(*numbers):
    return lambda root, content: [content["frames"][number].pop("transform_matrix") for number in numbers]


def _repeated(root, content):
    content["frames"].append({"file_path": "./images/2", "transform_matrix": MATRICES[2]})


def _mixed(root, content):
    _unlink(0, 1)(root, content)
    content["frames"][2]["transform_matrix"] = None
    _drop(8)(root, content)


@pytest.mark.parametrize(
    ("change", "used", "words"),
    [
        (_unlink(3), [0, 1, 2, 4, 5, 6, 7, 8], "1 of 9 frames have no image and are not used (images/3.png)"),
        (
            _unlink(0, 1, 2, 3, 4),
            [5, 6, 7, 8],
            "5 of 9 frames have no image and are not used (images/0.png, images/1.p",
        ),
        (_drop(4, 5), [0, 1, 2, 3, 6, 7, 8], "2 images have no pose and are not used (4.png, 5.png)"),
        (_drop(*range(2, 9)), [0, 1], "7 images have no pose and are not used (2.png, 3.png, 4.png, ...)"),
        (_without_matrix(7), [0, 1, 2, 3, 4, 5, 6, 8], "1 of 9 frames have no pose and are not used (images/7.png)"),
        (_repeated, range(9), "1 of 10 frames repeat another frame and are not used (2.png)"),
        (
            _mixed,
            [3, 4, 5, 6, 7],
            "(images/0.png, images/1.png); 1 of 8 frames have no pose and are not used (images/2",
        ),
    ],
)
def test_differences_are_counted_in_one_line_and_the_rest_is_used(root, caplog, change, used, words):
    content = _content()
    change(root, content)
    _check(read_transforms(_write(root, content)), used)
    assert words in _line(caplog)
    assert str(root / "transforms.json") in _line(caplog)


def _contradiction(root, content):
    content["frames"].append({"file_path": "images/2.png", "transform_matrix": MATRICES[3]})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_unlink(*range(6)), FileNotFoundError, r"names images that do not exist in .*cup: 6 of 9 \(images/0\.png, "),
        (_unlink(*range(9)), FileNotFoundError, r"names images that do not exist in .*: 9 of 9"),
        (_without_matrix(*range(6)), ValueError, r"has no pose of 6 of 9 images \(images/0\.png, "),
        (lambda r, c: (_without_matrix(0, 1, 2)(r, c), _unlink(3, 4, 5)(r, c)), ValueError, "no pose of 3 of 9"),
        (_contradiction, ValueError, r"two frames with the image .*2\.png and different poses"),
    ],
)
def test_a_file_without_two_thirds_of_its_frames_is_refused(root, change, error, words):
    content = _content()
    change(root, content)
    with pytest.raises(error, match=rf"transforms\.json.*{words}"):
        read_transforms(_write(root, content))


def test_masks_and_other_channels_are_no_images_without_pose(root, caplog):
    for name in ("0_mask.png", "1_depth_0001.png", "2.png.png", "object.png", "4-alpha.png", "5.normals.png"):
        _save(root / "images" / name)
    content = _content()
    content["frames"][3]["mask_path"] = "images/object.png"
    _check(read_transforms(_write(root, content)), range(9))
    assert not caplog.records


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
    ],
)
def test_a_byte_order_mark_and_windows_lines_do_not_matter(root, encode):
    (root / "transforms.json").write_bytes(encode(json.dumps(_content(), indent=1)))
    _check(read_transforms(root / "transforms.json"), range(9))


def test_a_deeply_nested_file_is_no_valid_json(root):
    (root / "transforms.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"transforms\.json is not valid JSON"):
        read_transforms(root / "transforms.json")


NAMES = [f"images/{index}.png" for index in range(COUNT)]


@pytest.mark.parametrize(
    ("lists", "used"),
    [
        ({"train_filenames": NAMES[:6], "test_filenames": NAMES[6:]}, range(6)),
        ({"train_filenames": [f"./{name}" for name in NAMES[2:5]]}, range(2, 5)),
        ({"train_filenames": [f"C:\\cup\\images\\{i}.PNG" for i in (1, 3)]}, [1, 3]),
        ({"val_filenames": NAMES[:2], "test_filenames": NAMES[:3]}, range(3, 9)),
        ({"train_filenames": None}, range(9)),
        ({"test_filenames": []}, range(9)),
    ],
)
def test_split_lists_select_the_training_frames(root, caplog, lists, used):
    _check(read_transforms(_write(root, _content(**lists))), used)
    assert not caplog.records


def test_names_of_split_lists_without_a_frame_are_reported(root, caplog):
    _check(read_transforms(_write(root, _content(train_filenames=[*NAMES[:4], "images/x.png"]))), range(4))
    assert "1 names of its split lists have no frame (images/x.png)" in _line(caplog)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train_filenames": []}, "no frame for training: its train_filenames leave none of 9"),
        ({"train_filenames": ["x.png"]}, "no frame for training"),
        ({"test_filenames": NAMES}, "no frame for training"),
        ({"train_filenames": "images/0.png"}, "list of image names as 'train_filenames'"),
        ({"train_filenames": [1]}, "list of image names as 'train_filenames'"),
    ],
)
def test_split_lists_that_leave_nothing_are_refused(root, lists, words):
    with pytest.raises(ValueError, match=rf"transforms\.json.*{words}"):
        read_transforms(_write(root, _content(**lists)))


def _blender(root, names=("train", "val", "test")):
    """Write one file a split with all images in one folder, as some exporters of NeRF's Blender data do."""
    for index, name in enumerate(names):
        content = _content()
        content["frames"] = content["frames"][3 * index : 3 * index + 3]
        _write(root, content, f"transforms_{name}.json")


def test_a_file_for_each_split_trains_on_its_training_file(root, caplog):
    _blender(root)
    _check(read_transforms(root / "transforms.json"), range(3))
    _check(read_transforms(root / "transforms_train.json"), range(3))
    _check(read_transforms(root / "transforms_test.json"), range(6, 9))
    assert not caplog.records
    datamodule = PosedFolder(root, holdout_every=3, num_workers=0)
    datamodule.setup()
    assert (len(datamodule.train_data), len(datamodule.test_data)) == (2, 1)
    (root / "transforms_train.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no transforms\.json in "):
        read_transforms(root / "transforms.json")


@pytest.mark.parametrize(("kind", "arguments"), [(MAD, {}), (MIP, {}), (MIP, {"layout": "synthetic"})])
def test_data_sets_with_a_file_for_each_split(root, kind, arguments):
    _blender(root, ["train"])
    for name in ("good", "dent"):
        _save(root / f"test/{name}/0.png")
    _save(root / "ground_truth/dent/0.png")
    datamodule = kind(root.parent, "cup", num_workers=0, **arguments)
    datamodule.setup()
    assert len(datamodule.train_data) == 3


@pytest.mark.parametrize(
    "name", ["test/good/0.png", "./test/good/0", "test\\GOOD\\0.png", "/home/a/cup/test/good/0.png"]
)
@pytest.mark.parametrize("file", ["test_transforms.json", "transforms_test.json", "../_hidden/cup.json"])
def test_true_poses_of_queries_have_the_same_names(root, file, name):
    _save(root / "test/good/0.png")
    (root / "../_hidden").mkdir()
    _write(root, {"frames": [{"file_path": name, "transform_matrix": MATRICES[4]}]}, file)
    _write(root, _content())
    for datamodule in (MAD(root.parent, "cup", num_workers=0), PosedFolder(root, "test", num_workers=0)):
        datamodule.setup()
        torch.testing.assert_close(datamodule.test_data[0].camera_to_world.float(), POSES[4].float())


# COLMAP


def _model(folder, names, points="", ending="\n", lens=("PINHOLE", "20 20 8 6")):
    """Write a text model; image number i has pose i."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"1 {lens[0]} 16 12 {lens[1]}\n")
    lines = ["# Image list with two lines of data per image:"]
    for number, name in names.items():
        viewmat = torch.linalg.inv(POSES[number])
        values = " ".join(map(repr, (*_quaternion(viewmat[:3, :3]), *viewmat[:3, 3].tolist())))
        lines += [f"{number + 1} {values} 1 {name}", points]
    (folder / "images.txt").write_text("\n".join(lines) + ending)
    (folder / "points3D.txt").write_text("")
    return folder


def _quaternion(rotation):
    w = 0.5 * float((1 + rotation.trace()).clamp(min=1e-12)) ** 0.5
    x, y, z = (float(rotation[i, j] - rotation[j, i]) / (4 * w) for i, j in ((2, 1), (0, 2), (1, 0)))
    return w, x, y, z


ALL = {number: f"{number}.png" for number in range(COUNT)}


def _edit(change):
    """Return a change of the bytes of images.txt."""

    def spoil(model):
        for name in ("images.txt", "cameras.txt", "points3D.txt"):
            (model / name).write_bytes(change((model / name).read_bytes(), name))

    return spoil


@pytest.mark.parametrize(
    "change",
    [
        lambda data, name: data,
        lambda data, name: codecs.BOM_UTF8 + data,
        lambda data, name: data.decode().encode("utf-16"),
        lambda data, name: data.replace(b"\n", b"\r\n"),
        lambda data, name: data.rstrip(),
        lambda data, name: data + b"\n\n\n# end\n",
        lambda data, name: data.replace(b"\n\n", b"\n") if name == "images.txt" else data,
        lambda data, name: data.replace(b"\n\n", b"\n1.5 2.5 -1 3.5 4.5 -1\n") if name == "images.txt" else data,
        lambda data, name: data.replace(b"\n\n", b"\n# points follow\n\n") if name == "images.txt" else data,
        lambda data, name: data.replace(b".png\n", b".png  \t\n"),
        lambda data, name: data.replace(b" 1 ", b"  1\t "),
        lambda data, name: data.replace(b" 1 ", b" 1 ./"),
        lambda data, name: data.replace(b" 1 ", b" 1 images\\") if name == "images.txt" else data,
        lambda data, name: data.replace(b" 1 ", b" 1 /home/a b/cup/images/") if name == "images.txt" else data,
        lambda data, name: data.replace(b".png", b".PNG"),
    ],
)
def test_text_models_of_other_programs_are_read(root, caplog, change):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model = _model(root / "sparse/0", ALL)
    _edit(change)(model)
    _check(read_colmap(model, root / "images"), range(9))
    assert find_colmap(root) == model
    assert not caplog.records


def test_names_with_spaces_are_read_from_text_and_binary(root):
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    names = {0: "left 1.png", 1: "left 2.png", 2: "new folder/a  b.png", 3: "3 4 5.png"}
    for number, name in names.items():
        _save(root / "photos" / name, 16 + 16 * (number == 3), 12 + 12 * (number == 3))
    model = _model(root / "sparse/0", names)
    frames = read_colmap(model, root / "photos")
    numbers = {root / "photos" / name: number for number, name in names.items()}
    assert {frame.image_path for frame in frames} == set(numbers)
    for frame in frames:
        torch.testing.assert_close(frame.camera_to_world, POSES[numbers[frame.image_path]])
    reconstruction = pycolmap.Reconstruction()
    _model(root / "numbers", {number: str(number) for number in names})
    reconstruction.read_text(root / "numbers")
    for image in reconstruction.images.values():
        image.name = names[image.image_id - 1]
    for write, folder in ((reconstruction.write_binary, root / "binary"), (reconstruction.write_text, root / "text")):
        folder.mkdir()
        write(folder)
        for by_hand, written in zip(frames, read_colmap(folder, root / "photos"), strict=True):
            assert by_hand.image_path == written.image_path
            torch.testing.assert_close(by_hand.camera_to_world, written.camera_to_world)


@pytest.mark.parametrize(
    ("absent", "unregistered", "words"),
    [
        ([2], [], "1 of 9 frames have no image and are not used (2.png)"),
        ([0, 1, 2, 3, 4], [], "5 of 9 frames have no image and are not used (0.png, 1.png, 2.png, ...)"),
        ([], [7, 8], "2 images have no pose and are not used (7.png, 8.png)"),
        ([0], [4, 5, 6, 7, 8], "1 of 4 frames have no image and are not used (0.png); 5 images have no pose"),
    ],
)
def test_models_that_lack_images_or_poses_are_used_with_one_line(root, caplog, absent, unregistered, words):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model = _model(root / "sparse/0", {number: name for number, name in ALL.items() if number not in unregistered})
    for number in absent:
        (root / f"images/{number}.png").unlink()
    _check(read_colmap(model, root / "images"), [n for n in range(9) if n not in {*absent, *unregistered}])
    assert words in _line(caplog)


@pytest.mark.parametrize(
    ("absent", "registered", "error", "words"),
    [
        (6, 9, FileNotFoundError, "names images that do not exist in .*images: 6 of 9"),
        (9, 9, FileNotFoundError, "names images that do not exist in .*images: 9 of 9"),
        (0, 3, ValueError, "has poses of 3 of 9 images in .*images"),
    ],
)
def test_models_that_lack_two_thirds_are_refused(root, absent, registered, error, words):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model = _model(root / "sparse/0", {number: ALL[number] for number in range(registered)})
    for number in range(absent):
        (root / f"images/{number}.png").unlink()
    with pytest.raises(error, match=rf"sparse/0.*{words}"):
        read_colmap(model, root / "images")


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        ({"sparse/0": 2, "sparse/1": 9}, "sparse/1"),
        ({"sparse/0": 9, "sparse/1": 2, "sparse/2": 3}, "sparse/0"),
        ({"sparse/0": 4, "sparse/1": 4}, "sparse/0"),
        ({"sparse/2": 4, "sparse/10": 5}, "sparse/10"),
        ({"colmap/sparse/0": 3, "colmap/sparse/1": 8}, "colmap/sparse/1"),
        ({"sparse/best": 8}, "sparse/best"),
        ({"sparse": 5, "sparse/0": 7}, "sparse/0"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_the_model_with_most_images_is_used_and_named(root, caplog, sizes, largest, binary):
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    for place, count in sizes.items():
        model = _model(root / place, {number: ALL[number] for number in range(count)})
        if binary:
            reconstruction = pycolmap.Reconstruction(model)
            for path in model.glob("*.txt"):
                path.unlink()
            reconstruction.write_binary(model)
    assert find_colmap(root) == root / largest
    if len(sizes) > 1:
        assert f"several COLMAP models: {largest} with {sizes[largest]} images is used, not " in _line(caplog)
    datamodule = PosedFolder(root, num_workers=0, holdout_every=9)
    datamodule.setup()
    assert len(datamodule.train_data) == sizes[largest] - 1


def test_models_beside_the_images_are_found(root):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    assert find_colmap(_model(root, ALL)) == root


def test_images_without_pose_in_subfolders_and_other_cases_of_the_folder(root, caplog):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    model = _model(root / "sparse/0", ALL)
    for name in ("left/1.png", "masks/1.png", "1_2.png", "2_mask.png", "3.png.png", ".left/2.png"):
        _save(root / "images" / name)
    (root / "images").rename(root / "Images")
    _check(read_colmap(model, root / "images"), range(9))
    assert "2 images have no pose and are not used (1_2.png, 1.png)" in _line(caplog)


def test_an_unfinished_model_is_not_preferred(root):
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    _model(root / "sparse/0", ALL)
    (root / "sparse/0/points3D.txt").unlink()
    assert find_colmap(root) == root / "sparse/0"
    _model(root / "sparse/1", {0: "0.png"})
    assert find_colmap(root) == root / "sparse/1"
