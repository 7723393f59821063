# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at, pose_error
from anomalib_pose.pose import FeatureLocalizer, Query, make_estimator, make_matcher
from anomalib_pose.pose.feature_matchers import LoftrMatcher, _mutual_matches
from anomalib_pose.scene import GaussianScene
from sample_scenes import make_toy

FILES = {"aliked": "aliked-n16.pth", "xfeat": "xfeat.pth"}


@pytest.fixture(params=sorted(FILES))
def matcher(request, shared):
    path = shared / "weights" / FILES[request.param]
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    return make_matcher(request.param, path)


def mosaic(size: int) -> torch.Tensor:
    """Make an image of squares with random colors."""
    colors = torch.rand(3, size // 20 + 1, size // 20 + 1, generator=torch.Generator().manual_seed(1))
    return colors.repeat_interleave(20, 1).repeat_interleave(20, 2)[:, :size, :size]


def test_a_shifted_image_gives_shifted_matches(matcher):
    image = mosaic(192)
    (same, shifted) = matcher(image, torch.stack([image, image.roll((8, 16), (1, 2))]))
    torch.testing.assert_close(*same)
    shift = shifted[1] - shifted[0]
    torch.testing.assert_close(shift.median(0).values, torch.tensor([16.0, 8.0]), atol=0.05, rtol=0)
    assert ((shift - torch.tensor([16.0, 8.0])).norm(dim=1) < 1.5).float().mean() > 0.7


def speckled_toy() -> GaussianScene:
    """Give each Gaussian of the toy a random color, so that the toy has texture."""
    scene = make_toy(2500)
    raw = scene.raw
    raw["sh"] = torch.randn(raw["sh"].shape, generator=torch.Generator().manual_seed(2))
    raw["log_scales"] = raw["log_scales"] - 0.2
    scene.set_raw(raw)
    return scene


def test_feature_matching_localizes_a_textured_toy(matcher):
    """The views are 12 and 18 degrees away from the query."""
    scene = speckled_toy()
    angles = torch.deg2rad(torch.tensor([0.0, 12.0, -18.0]))
    eyes = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.full((3,), 0.6)], 1)
    truth, *views = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0, 1]))
    camera = Camera.from_fov(truth, 0.5, 160, 160)
    output = scene.render(camera, torch.ones(3))
    pose, *_ = FeatureLocalizer(matcher)(
        scene, Query(output.rgb.permute(2, 0, 1).clamp(0, 1), camera.K), torch.stack(views)
    )
    assert math.degrees(pose_error(pose, truth)[0]) < 1.5


def test_mutual_matches_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(9, 4, generator=generator), torch.randn(7, 4, generator=generator)
    points = torch.rand(9, 2, generator=generator), torch.rand(7, 2, generator=generator)
    expected = []
    for i in range(9):
        j = max(range(7), key=lambda j: float(first[i] @ second[j]))
        if max(range(9), key=lambda k: float(first[k] @ second[j])) == i:
            expected.append((i, j))
    matches = _mutual_matches((points[0], first), (points[1], second))
    torch.testing.assert_close(matches[0], torch.stack([points[0][i] for i, _ in expected]))
    torch.testing.assert_close(matches[1], torch.stack([points[1][j] for _, j in expected]))
    assert len(_mutual_matches((points[0], first), (points[1][:0], second[:0]))[0]) == 0


def test_weights_are_read_at_the_first_use(tmp_path):
    from kornia.feature import LoFTR

    file = tmp_path / "loftr.pth"
    loftr = make_matcher("loftr", file)
    with pytest.raises(FileNotFoundError, match=r"found none at .*loftr\.pth"):
        loftr.load()
    saved = LoFTR(pretrained=None).state_dict()
    torch.save({"state_dict": {f"matcher.{name}": value for name, value in saved.items()}}, file)
    state = torch.random.get_rng_state()
    loftr.load()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(loftr, LoftrMatcher)
    for name, value in loftr._loaded_network().state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert not loftr._loaded_network().training


def test_a_matcher_is_not_part_of_the_state(matcher):
    name, file = matcher.name, str(matcher.weights)
    estimator = make_estimator(matcher=name, matcher_weights=file)
    estimator.load()
    assert set(estimator.state_dict()) == {"typical_residual"}
    assert make_estimator().feature_localizer is None


def test_wrong_weights_are_refused(tmp_path, shared):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for file, message in (
        ("other", "missing and 1 unknown"),
        ("list", "state dict"),
        ("text", "as tensors, but is a text file"),
    ):
        with pytest.raises(ValueError, match=message):
            make_matcher("aliked", tmp_path / f"{file}.pth").load()
    with pytest.raises(ValueError, match="needs matcher_weights"):
        make_matcher("aliked", "")
    with pytest.raises(ValueError, match="'aliked', 'xfeat', 'loftr', or empty"):
        make_matcher("sift", "")
    with pytest.raises(ValueError, match="or empty without weights, got ''"):
        make_matcher("", tmp_path / "other.pth")
