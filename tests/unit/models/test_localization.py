# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anomalib_pose
from anomalib_pose.geometry import Camera, pose_error, view_sphere
from anomalib_pose.models import PIAD, SplatPose, estimate_pose
from anomalib_pose.models.localization import load_fitted, localize
from sample_models import SIZE, make_fitted, save_checkpoint
from sample_scenes import make_toy

TRUTH = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)


@pytest.fixture(scope="module")
def model() -> SplatPose:
    return make_fitted()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("fitted") / "model.ckpt")


def photograph(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """The toy on white, and its mask."""
    output = make_toy().render(camera, torch.ones(3))
    return output.rgb.permute(2, 0, 1).clamp(0, 1), (output.alpha > 0.5).float()


def seen_from(index: int, width: int = SIZE, height: int = SIZE) -> Camera:
    return Camera.from_fov(TRUTH[index], 0.7, width, height)


def save(path: Path, image: torch.Tensor) -> Path:
    pixels = (image * 255).round().byte().numpy()
    Image.fromarray(pixels if image.ndim == 2 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)
    return path


def is_found(estimate, index: int) -> bool:
    angle, distance = pose_error(estimate.camera.camera_to_world, TRUTH[index])
    return math.degrees(angle) < 0.5 and float(distance) < 0.07 and estimate.confidence > 0.7


def test_an_image_and_several(model):
    images = [photograph(seen_from(index))[0] for index in (4, 7)]
    assert is_found(estimate_pose(model, images[0]), 4)
    both = estimate_pose(model, torch.stack(images))
    assert is_found(both[0], 4)
    assert is_found(both[1], 7)


def test_a_checkpoint_is_a_model_and_a_file_an_image(model, checkpoint, tmp_path):
    file = save(tmp_path / "a.png", photograph(seen_from(4))[0])
    from_file = estimate_pose(str(checkpoint), file)
    assert is_found(from_file, 4)
    torch.testing.assert_close(
        from_file.camera.camera_to_world, estimate_pose(model, [file])[0].camera.camera_to_world, rtol=0, atol=0
    )


def test_a_large_photograph_gives_its_own_camera(model):
    """Three times the training views' size: K is the large image's, and its renders are small ones."""
    camera = seen_from(4, 3 * SIZE, 3 * SIZE)
    estimate = estimate_pose(model, photograph(camera)[0])
    assert (estimate.camera.width, estimate.camera.height) == (3 * SIZE, 3 * SIZE)
    torch.testing.assert_close(estimate.camera.K, camera.K)
    assert is_found(estimate, 4)


def test_intrinsics_of_another_camera(model):
    """An off-center photograph that the training views' intrinsics do not fit."""
    pose = TRUTH[4]
    K = torch.tensor([[100.0, 0, 50], [0, 100, 34], [0, 0, 1]])
    image, _ = photograph(Camera(pose, K, 96, 64))
    with pytest.raises(ValueError, match="96 x 64, which has not the aspect of the training views"):
        estimate_pose(model, image)
    assert is_found(estimate_pose(model, image, K), 4)


def test_a_mask_cuts_the_object_out(model, tmp_path):
    """In front of its own negative the toy is found with its mask alone."""
    image, mask = photograph(seen_from(4))
    cluttered = torch.where(mask > 0, image, 1 - image.roll(20, -1).flip(1))
    assert not is_found(estimate_pose(model, cluttered), 4)
    assert is_found(estimate_pose(model, cluttered, foreground=mask), 4)
    files = save(tmp_path / "a.png", cluttered), save(tmp_path / "mask.png", mask)
    assert is_found(estimate_pose(model, files[0], foreground=files[1]), 4)
    transparent = torch.cat([cluttered, mask[None]])
    assert is_found(estimate_pose(model, save(tmp_path / "b.png", transparent)), 4)


def test_mistakes_of_the_caller_are_named(model, tmp_path):
    image, mask = photograph(seen_from(4))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        estimate_pose(model, image * 255)
    with pytest.raises(ValueError, match="size of its image"):
        estimate_pose(model, image, foreground=mask[1:])
    with pytest.raises(ValueError, match="each of the 2 photographs, got 1"):
        estimate_pose(model, [image, image], foreground=[mask])
    with pytest.raises(ValueError, match="focal lengths above 0"):
        estimate_pose(model, image, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="not fitted"):
        estimate_pose(SplatPose(), image)
    with pytest.raises(TypeError, match="got a Linear"):
        estimate_pose(torch.nn.Linear(1, 1), image)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        estimate_pose(tmp_path / "none.ckpt", image)


def test_only_the_right_checkpoint_is_loaded(checkpoint, tmp_path):
    assert type(load_fitted(checkpoint)) is SplatPose
    with pytest.raises(ValueError, match="checkpoint of PIAD, but says that it is of SplatPose"):
        load_fitted(checkpoint, "PIAD")
    with pytest.raises(ValueError, match="was not fitted"):
        load_fitted(save_checkpoint(SplatPose(), tmp_path / "empty.ckpt"))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="has no state_dict"):
        load_fitted(tmp_path / "weights.pt")
    content = torch.load(checkpoint, weights_only=True)
    del content["anomalib_pose_model"]
    torch.save(content, tmp_path / "unnamed.ckpt")
    with pytest.raises(ValueError, match="of none of them"):
        load_fitted(tmp_path / "unnamed.ckpt")
    assert len(load_fitted(tmp_path / "unnamed.ckpt", "SplatPose").model.bank)
    del content["state_dict"]["model.bank.center"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"does not fit this version of SplatPose.*bank\.center"):
        load_fitted(tmp_path / "old.ckpt", "SplatPose")


def test_a_checkpoint_holds_no_matcher(tmp_path):
    """Its weights are read from their file, and another matcher, or none, can be chosen for a fitted object."""
    given = make_fitted(matcher="xfeat", matcher_weights=str(tmp_path / "none.pth"))
    path = save_checkpoint(given, tmp_path / "model.ckpt")
    assert torch.load(path, weights_only=True)["state_dict"].keys() == make_fitted().state_dict().keys()
    with pytest.raises(FileNotFoundError, match=r"'xfeat' as matcher_weights in a file, found none at .*none\.pth"):
        load_fitted(path)
    assert load_fitted(path, matcher="", matcher_weights="").model.estimator.feature_localizer is None


def test_the_search_can_be_set_anew(checkpoint, tmp_path):
    """Held a quarter turn away from the training views."""
    turned = photograph(seen_from(4))[0].rot90(1, (1, 2))
    truth = TRUTH[4].clone()
    truth[:3, :3] = TRUTH[4, :3, :3] @ torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    errors = []
    for rolls in (1, 12):
        estimate = estimate_pose(load_fitted(checkpoint, rolls=rolls, starts=1), turned)
        errors.append(math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]))
    assert errors[0] > 10
    assert errors[1] < 0.5


def test_a_checkpoint_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(ValueError, match="weights_only"):
        load_fitted(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_piad_localizes_too(tmp_path):
    path = save_checkpoint(make_fitted(PIAD), tmp_path / "model.ckpt")
    assert type(load_fitted(path)) is PIAD
    assert is_found(estimate_pose(path, photograph(seen_from(7))[0]), 7)


def test_a_folder_becomes_a_file_of_cameras(model, tmp_path, caplog):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    for index in (4, 7):
        image, mask = photograph(seen_from(index))
        save(photos / f"{index}.png", image)
        save(masks / f"{index}.png", mask)
    caplog.set_level("INFO")
    localize(model, photos, tmp_path / "out" / "poses.json", masks, progress=False)
    assert "Localized 2 photographs" in caplog.text
    assert "0 of them doubtful" in caplog.text
    content = json.loads((tmp_path / "out" / "poses.json").read_text())
    assert content["model"] == "SplatPose"
    assert [Path(one["file"]).name for one in content["images"]] == ["4.png", "7.png"]
    for one, index in zip(content["images"], (4, 7), strict=True):
        angle, _ = pose_error(torch.tensor(one["camera_to_world"]), TRUTH[index])
        assert math.degrees(angle) < 0.3
        torch.testing.assert_close(torch.tensor(one["K"]), seen_from(index).K)
        assert (one["width"], one["height"]) == (SIZE, SIZE)
        assert one["confidence"] > 0.7
        assert one["seconds"] > 0


def test_what_was_not_found_is_said_with_advice(model, tmp_path, caplog):
    save(tmp_path / "a.png", torch.ones(3, SIZE, SIZE))
    caplog.set_level("INFO")
    localize(model, tmp_path / "a.png", tmp_path / "poses.json", progress=False)
    for said in ("1 of them doubtful", "give a matcher", "set rolls to 12"):
        assert said in caplog.text


def test_what_cannot_be_localized_leaves_no_file(model, tmp_path):
    photos, masks, output = tmp_path / "photos", tmp_path / "masks", tmp_path / "poses.json"
    photos.mkdir()
    masks.mkdir()
    with pytest.raises(FileNotFoundError, match="no photographs"):
        localize(model, photos, output, progress=False)
    with pytest.raises(FileNotFoundError, match="no photographs"):
        localize(model, tmp_path / "none.png", output, progress=False)
    save(photos / "a.png", photograph(seen_from(4))[0])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 are missing.*a\.png"):
        localize(model, photos, output, masks, progress=False)
    save(masks / "a.png", torch.ones(SIZE, SIZE - 1))
    with pytest.raises(ValueError, match=r"63 x 64, but its image .*a\.png"):
        localize(model, photos, output, masks, progress=False)
    (photos / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        localize(model, photos, output, progress=False)
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".*"))


def test_it_is_a_public_name():
    assert anomalib_pose.estimate_pose is estimate_pose
