# SPDX-License-Identifier: Apache-2.0
"""Pose estimation of photographs with a fitted toy."""

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
from anomalib_pose.models.localization import load_fitted
from anomalib_pose.models.localize_run import localize
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
    """Render the toy on white, with its mask."""
    output = make_toy().render(camera, torch.ones(3))
    return output.rgb.permute(2, 0, 1).clamp(0, 1), (output.alpha > 0.5).float()


def true_camera(index: int, width: int = SIZE, height: int = SIZE) -> Camera:
    return Camera.from_fov(TRUTH[index], 0.7, width, height)


def save(path: Path, image: torch.Tensor) -> Path:
    pixels = (image * 255).round().byte().numpy()
    Image.fromarray(pixels if image.ndim == 2 else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)
    return path


def is_localized(estimate, index: int) -> bool:
    angle, distance = pose_error(estimate.camera.camera_to_world, TRUTH[index])
    return math.degrees(angle) < 0.5 and float(distance) < 0.07 and estimate.confidence > 0.7


def test_one_image_and_several_images_are_localized(model):
    images = [photograph(true_camera(index))[0] for index in (4, 7)]
    assert is_localized(estimate_pose(model, images[0]), 4)
    both = estimate_pose(model, torch.stack(images))
    assert is_localized(both[0], 4)
    assert is_localized(both[1], 7)


def test_checkpoint_and_image_file_are_accepted(model, checkpoint, tmp_path):
    file = save(tmp_path / "a.png", photograph(true_camera(4))[0])
    from_file = estimate_pose(str(checkpoint), file)
    assert is_localized(from_file, 4)
    torch.testing.assert_close(
        from_file.camera.camera_to_world, estimate_pose(model, [file])[0].camera.camera_to_world, rtol=0, atol=0
    )


def test_large_photograph_gets_the_camera_of_its_own_size(model):
    """Three times the size of the training views: the pose search runs at their size, K belongs to the large image."""
    camera = true_camera(4, 3 * SIZE, 3 * SIZE)
    estimate = estimate_pose(model, photograph(camera)[0])
    assert (estimate.camera.width, estimate.camera.height) == (3 * SIZE, 3 * SIZE)
    torch.testing.assert_close(estimate.camera.K, camera.K)
    assert is_localized(estimate, 4)


def test_another_aspect_ratio_needs_intrinsics(model):
    """The principal point is off center, so the intrinsics of the training views do not apply."""
    pose = TRUTH[4]
    K = torch.tensor([[100.0, 0, 50], [0, 100, 34], [0, 0, 1]])
    image, _ = photograph(Camera(pose, K, 96, 64))
    with pytest.raises(ValueError, match=r"96 x 64, but the training views are 64 x 64: .* another aspect ratio"):
        estimate_pose(model, image)
    assert is_localized(estimate_pose(model, image, K), 4)


def test_mask_or_transparency_separates_the_object_from_clutter(model, tmp_path):
    """In front of its own negative, the toy is localized only with a mask."""
    image, mask = photograph(true_camera(4))
    cluttered = torch.where(mask > 0, image, 1 - image.roll(20, -1).flip(1))
    assert not is_localized(estimate_pose(model, cluttered), 4)
    assert is_localized(estimate_pose(model, cluttered, foreground=mask), 4)
    files = save(tmp_path / "a.png", cluttered), save(tmp_path / "mask.png", mask)
    assert is_localized(estimate_pose(model, files[0], foreground=files[1]), 4)
    transparent = torch.cat([cluttered, mask[None]])
    assert is_localized(estimate_pose(model, save(tmp_path / "b.png", transparent)), 4)


def test_wrong_arguments_are_refused(model, tmp_path):
    image, mask = photograph(true_camera(4))
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \(3, 64, 64\) in \["):
        estimate_pose(model, image * 255)
    with pytest.raises(ValueError, match="size of its image"):
        estimate_pose(model, image, foreground=mask[1:])
    with pytest.raises(ValueError, match="one mask per photograph, got 1 masks for 2"):
        estimate_pose(model, [image, image], foreground=[mask])
    with pytest.raises(ValueError, match="focal lengths above 0"):
        estimate_pose(model, image, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="not fitted"):
        estimate_pose(SplatPose(), image)
    with pytest.raises(TypeError, match="got a Linear"):
        estimate_pose(torch.nn.Linear(1, 1), image)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        estimate_pose(tmp_path / "none.ckpt", image)


def test_checkpoint_of_another_or_an_unfitted_model_is_refused(checkpoint, tmp_path):
    assert type(load_fitted(checkpoint)) is SplatPose
    with pytest.raises(ValueError, match="checkpoint of PIAD, but belongs to SplatPose"):
        load_fitted(checkpoint, "PIAD")
    with pytest.raises(ValueError, match="holds an unfitted SplatPose"):
        load_fitted(save_checkpoint(SplatPose(), tmp_path / "empty.ckpt"))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="has no state_dict"):
        load_fitted(tmp_path / "weights.pt")
    content = torch.load(checkpoint, weights_only=True)
    del content["anomalib_pose_model"]
    torch.save(content, tmp_path / "unnamed.ckpt")
    with pytest.raises(ValueError, match="but names no model"):
        load_fitted(tmp_path / "unnamed.ckpt")
    assert len(load_fitted(tmp_path / "unnamed.ckpt", "SplatPose").model.bank)
    del content["state_dict"]["model.bank.center"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"does not match this version of SplatPose.*bank\.center"):
        load_fitted(tmp_path / "old.ckpt", "SplatPose")


def test_checkpoint_contains_no_matcher(tmp_path):
    """The weights of the matcher come from their file; a fitted model can be loaded with another matcher or none."""
    model_with_matcher = make_fitted(matcher="xfeat", matcher_weights=str(tmp_path / "none.pth"))
    path = save_checkpoint(model_with_matcher, tmp_path / "model.ckpt")
    assert torch.load(path, weights_only=True)["state_dict"].keys() == make_fitted().state_dict().keys()
    with pytest.raises(FileNotFoundError, match=r"'xfeat' as matcher_weights in a file, found none at .*none\.pth"):
        load_fitted(path)
    assert load_fitted(path, matcher="", matcher_weights="").model.estimator.feature_localizer is None


def test_in_plane_rotation_needs_rolls_which_loading_can_set(checkpoint, tmp_path):
    """The photograph is rotated by 90 degrees against the training views."""
    rotated = photograph(true_camera(4))[0].rot90(1, (1, 2))
    truth = TRUTH[4].clone()
    truth[:3, :3] = TRUTH[4, :3, :3] @ torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    errors = []
    for rolls in (1, 12):
        estimate = estimate_pose(load_fitted(checkpoint, rolls=rolls, starts=1), rotated)
        errors.append(math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]))
    assert errors[0] > 10
    assert errors[1] < 0.5


def test_loading_a_checkpoint_runs_no_code(tmp_path):
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
    assert is_localized(estimate_pose(path, photograph(true_camera(7))[0]), 7)


def test_folder_of_photographs_becomes_a_json_file_of_cameras(model, tmp_path, caplog):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    masks.mkdir()
    for index in (4, 7):
        image, mask = photograph(true_camera(index))
        save(photos / f"{index}.png", image)
        save(masks / f"{index}.png", mask)
    caplog.set_level("INFO")
    localize(model, photos, tmp_path / "out" / "poses.json", masks, progress=False)
    assert "Localized 2 photographs" in caplog.text
    assert "0 of them with a confidence below 0.5" in caplog.text
    content = json.loads((tmp_path / "out" / "poses.json").read_text())
    assert content["model"] == "SplatPose"
    assert [Path(entry["file"]).name for entry in content["images"]] == ["4.png", "7.png"]
    for entry, index in zip(content["images"], (4, 7), strict=True):
        angle, _ = pose_error(torch.tensor(entry["camera_to_world"]), TRUTH[index])
        assert math.degrees(angle) < 0.3
        torch.testing.assert_close(torch.tensor(entry["K"]), true_camera(index).K)
        assert (entry["width"], entry["height"]) == (SIZE, SIZE)
        assert entry["confidence"] > 0.7
        assert entry["seconds"] > 0


def test_low_confidence_is_logged_with_advice(model, tmp_path, caplog):
    save(tmp_path / "a.png", torch.ones(3, SIZE, SIZE))
    caplog.set_level("INFO")
    localize(model, tmp_path / "a.png", tmp_path / "poses.json", progress=False)
    for part in ("1 of them with a confidence below 0.5", "give a matcher", "set rolls to 12"):
        assert part in caplog.text


def test_failed_localization_leaves_no_file(model, tmp_path):
    photos, masks, output = tmp_path / "photos", tmp_path / "masks", tmp_path / "poses.json"
    photos.mkdir()
    masks.mkdir()
    with pytest.raises(FileNotFoundError, match="no photographs"):
        localize(model, photos, output, progress=False)
    with pytest.raises(FileNotFoundError, match="no photographs"):
        localize(model, tmp_path / "none.png", output, progress=False)
    save(photos / "a.png", photograph(true_camera(4))[0])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 are missing.*a\.png"):
        localize(model, photos, output, masks, progress=False)
    save(masks / "a.png", torch.ones(SIZE, SIZE - 1))
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match=r"None of 1 .*63 x 64, but its image .*a\.png"):
        localize(model, photos, output, masks, progress=False)


def test_estimate_pose_is_a_public_name():
    assert anomalib_pose.estimate_pose is estimate_pose
