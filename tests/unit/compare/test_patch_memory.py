# SPDX-License-Identifier: Apache-2.0
"""Patch memory: distances equal a loop, scores have the scale of the comparison, weights follow ranking errors."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

import anomalib_pose
from anomalib_pose.compare import (
    CalibratedComparator,
    FeatureExtractor,
    NetworkSettings,
    ReferenceComparison,
    WindowSettings,
    reference_comparison,
)
from anomalib_pose.compare.patch_memory import PatchMemory
from anomalib_pose.compare.reference import stack_references
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.pose import PoseEstimator, make_estimator
from sample_scenes import make_toy

TINY = "test_efficientnet.r160_in1k"
SIZE = 64
CAMERAS = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE).with_pose(view_sphere(24, 3.0, 1.0, -0.2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(timm.create_model(TINY, pretrained=False).state_dict(), path)
    return str(path)


@pytest.fixture
def extractor(weights):
    return FeatureExtractor(TINY, (0, 1, 2), weights_path=weights)


def views(count: int, seed: int) -> torch.Tensor:
    """Make random views of the size that the memory uses, so that nothing is resized."""
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(seed))


def patches_of(extractor: FeatureExtractor, image: torch.Tensor) -> np.ndarray:
    """Compute the embedding by its definition: layers of stride 8 and more, means of three by three cells."""
    stages = [stage for stage, stride in zip(extractor(image[None]), extractor.strides, strict=True) if stride >= 8]
    fine = stages[0].shape[-2:]
    parts = [functional.interpolate(functional.avg_pool2d(s, 3, 1, 1), fine, mode="bilinear") for s in stages]
    return torch.cat(parts, 1)[0].flatten(1).T.double().numpy()


def test_score_is_the_largest_patch_distance(extractor):
    memory = PatchMemory(patches=10**6)
    normal_views, query = views(2, 0), views(1, 1)
    memory.fit(extractor, normal_views)
    all_patches = np.concatenate([patches_of(extractor, image) for image in normal_views])
    assert len(memory.bank) == len(all_patches)
    distances = [np.sqrt(np.square(all_patches - patch).sum(1).min()) for patch in patches_of(extractor, query[0])]
    assert float(memory.distances(extractor, query)[1]) == pytest.approx(max(distances), rel=1e-3)
    assert memory.distances(extractor, normal_views)[1].amax() < 0.05 * max(distances)


def test_bank_covers_the_patches_and_depends_on_the_seed(extractor):
    memory, again = PatchMemory(40, seed=1), PatchMemory(40, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    memory.fit(extractor, views(2, 0))
    assert torch.equal(torch.rand(1), expected)
    again.fit(extractor, views(2, 0))
    assert torch.equal(memory.bank, again.bank)
    assert len(memory.bank) == 40
    all_patches = torch.from_numpy(np.concatenate([patches_of(extractor, image) for image in views(2, 0)])).float()
    random = all_patches[torch.randperm(len(all_patches), generator=torch.Generator().manual_seed(0))[:40]]
    assert torch.cdist(all_patches, memory.bank).amin(1).amax() < torch.cdist(all_patches, random).amin(1).amax()


def test_calibration_matches_mean_and_standard_deviation(extractor):
    memory = PatchMemory(40)
    memory.fit(extractor, views(2, 0))
    held_out = views(5, 1)
    compared = (5 + 0.1 * torch.rand(5, 256, 256), torch.tensor([7.0, 8.0, 9.0, 8.5, 7.5]))
    memory.calibrate(memory.distances(extractor, held_out), compared)
    for rescaled, target in zip(memory(extractor, held_out), compared, strict=True):
        assert float(rescaled.mean()) == pytest.approx(float(target.mean()), rel=1e-3)
        assert float(rescaled.std()) == pytest.approx(float(target.std()), rel=1e-3)
    other = PatchMemory(7)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other(extractor, held_out)[1], memory(extractor, held_out)[1])
    memory.calibrate(memory.distances(extractor, held_out[:1]), (compared[0][:1], compared[1][:1]))
    assert float(memory(extractor, held_out[:1])[1]) == pytest.approx(7.0, rel=1e-3)
    with pytest.raises(ValueError, match="patches=0"):
        PatchMemory(0)


def test_scores_below_the_comparisons_range_keep_their_order(extractor):
    memory, images = PatchMemory(40), views(5, 1)
    memory.fit(extractor, views(2, 0))
    maps, distances = memory.distances(extractor, images)
    memory.calibrate((maps, distances), (maps, torch.tensor([0.0, 9.0, 0.1, 0.0, 0.0])))
    scores = memory(extractor, images)[1]
    assert scores.min() < 0
    assert torch.equal(scores.argsort(), distances.argsort())
    assert len(scores.unique()) == 5


def ranking_error(normal: torch.Tensor, defective: torch.Tensor) -> float:
    """Compute the fraction of wrongly ordered pairs by a loop; half an error is added, as in the memory."""
    pairs = [(float(one), float(other)) for one in normal for other in defective]
    wrong = sum((one > other) + 0.5 * (one == other) for one, other in pairs)
    return (wrong + 0.5) / (len(pairs) + 1)


def test_mixing_weights_follow_ranking_errors(extractor):
    memory = PatchMemory(300)
    memory.fit(extractor, views(2, 0))
    normal = views(3, 1)
    defective = normal.repeat(2, 1, 1, 1)
    defective[:, :, 40:160, 60:140] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # the bank holds gray noise
    constant, generator = torch.ones(6, 256, 256), torch.Generator().manual_seed(0)
    scores = 9 * torch.rand(9, generator=generator)
    maps = constant + torch.rand(constant.shape, generator=generator)
    memory.learn_mixing_weights(extractor, (normal, maps[:3], scores[:3]), (defective, maps, scores[3:]))
    memory_scores = memory(extractor, normal)[1], memory(extractor, defective)[1]
    expected = 1 - ranking_error(*memory_scores) / ranking_error(scores[:3], scores[3:])
    assert expected > 0.1
    assert float(memory.mixing_weights[1]) == pytest.approx(expected, abs=1e-5)
    memory_maps = memory(extractor, defective)[0]
    changed = torch.zeros(256, 256, dtype=torch.bool)
    changed[40:160, 60:140] = True
    sample = torch.arange(0, memory_maps.numel(), 997)
    map_values, inside = memory_maps.flatten()[sample], changed.repeat(6, 1, 1).flatten()[sample]
    assert float(memory.mixing_weights[0]) == pytest.approx(
        1 - ranking_error(map_values[~inside], map_values[inside]) / 0.5, abs=0.05
    )
    # a comparison without errors leaves the memory no weight
    right = (defective - normal.repeat(2, 1, 1, 1)).abs().amax(1)
    memory.learn_mixing_weights(extractor, (normal, maps[:3], torch.zeros(3)), (defective, right, torch.ones(6)))
    assert memory.mixing_weights.tolist() == [0, 0]


def test_mixing_weights_are_a_minimum(extractor):
    memory = PatchMemory(300)
    memory.fit(extractor, views(2, 0))
    queries, compared = views(2, 1), (torch.ones(2, 256, 256), torch.tensor([3.0, 4.0]))
    assert memory.mix(extractor, queries, compared, torch.zeros(2)) is compared
    memory.mixing_weights.copy_(torch.tensor([0.0, 0.25]))
    maps, scores = memory.mix(extractor, queries, compared, torch.tensor([0.0, 0.5]))
    memory_maps, memory_scores = memory(extractor, queries)
    torch.testing.assert_close(maps, torch.stack([compared[0][0], 0.5 * compared[0][1] + 0.5 * memory_maps[1]]))
    torch.testing.assert_close(
        scores, torch.stack([0.75 * 3 + 0.25 * memory_scores[0], 0.5 * 4 + 0.5 * memory_scores[1]])
    )
    older = {name: value for name, value in memory.state_dict().items() if name != "mixing_weights"}
    loaded = PatchMemory(300)
    loaded.load_state_dict(older)
    assert loaded.mixing_weights.tolist() == [0, 0]


def fitted(weights: str, patches: int, views: int = 24, holdout_every: int = 10) -> SceneDetector:
    comparator = CalibratedComparator(NetworkSettings(TINY, (0, 1, 2), weights_path=weights), window=WindowSettings(64))
    detector = SceneDetector(
        make_toy(),
        make_estimator(),
        ReferenceComparison(comparator, surface_views=0, memory_patches=patches),
        holdout_every=holdout_every,
    )
    cameras = CAMERAS[:: len(CAMERAS) // views]
    images = torch.stack([detector.render_reference(camera)[0] for camera in cameras])
    detector.fit(images, cameras, None, lambda *_: 30.0)
    return detector


@pytest.mark.parametrize("name", ["SplatPose", "OmniposeAD", "PIAD"])
def test_memory_gets_the_seed_of_the_model(weights, name):
    model = getattr(anomalib_pose, name)(backbone=TINY, weights_path=weights, memory_patches=10, seed=3)
    assert (model.model.comparison.seed, model.model.comparison.memory.seed) == (3, 3)


def test_synthetic_defects_depend_on_the_seed(weights, monkeypatch):
    used_seeds = []

    def record_seed(images: torch.Tensor, seed: int) -> torch.Tensor:
        used_seeds.append(seed)
        return add_synthetic_defects(images, seed)

    monkeypatch.setattr(reference_comparison, "add_synthetic_defects", record_seed)
    comparator = CalibratedComparator(NetworkSettings(TINY, (0, 1, 2), weights_path=weights), window=WindowSettings(64))
    comparison = ReferenceComparison(comparator, surface_views=0, memory_patches=10, seed=5)
    detector = SceneDetector(make_toy(), make_estimator(), comparison, holdout_every=3)
    images = torch.stack([detector.render_reference(camera)[0] for camera in CAMERAS])
    detector.fit(images, CAMERAS, None, lambda *_: 30.0)
    assert used_seeds == [5, 6, 7, 8, 9]


def test_memory_is_mixed_in_for_low_confidence_queries_only(weights):
    with_memory, without = fitted(weights, 300), fitted(weights, 0)
    localized = with_memory.render_reference(CAMERAS[7])[0]
    lost = torch.ones(3, SIZE, SIZE)
    lost[:, 20:44, 10:54] = views(1, 5)[0, :, :24, :44]
    mixed, comparison_alone = (one(torch.stack([localized, lost])) for one in (with_memory, without))
    memory_weight = (1 - comparison_alone.pose_confidence / 0.5).clamp(min=0)
    assert memory_weight[0] == 0
    assert memory_weight[1] > 0.5
    assert torch.equal(mixed.pred_score[0], comparison_alone.pred_score[0])
    assert torch.equal(mixed.anomaly_map[0], comparison_alone.anomaly_map[0])
    maps, scores = with_memory.comparison.memory(with_memory.comparison.comparator.extractor, lost[None])
    expected = (1 - memory_weight[1]) * comparison_alone.pred_score[1] + memory_weight[1] * scores[0]
    assert float(mixed.pred_score[1]) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(
        mixed.anomaly_map[1, 0],
        (1 - memory_weight[1]) * comparison_alone.anomaly_map[1, 0] + memory_weight[1] * maps[0],
    )
    with pytest.raises(ValueError, match="memory_patches"):
        fitted(weights, -1)


def test_held_out_views_set_the_mixing_weights(weights, caplog):
    caplog.set_level("INFO")
    few = fitted(weights, 300)
    assert "patch memory has a weight" not in caplog.text, "two held-out views are too few"
    assert few.comparison.memory.mixing_weights.tolist() == [0, 0]
    detector = fitted(weights, 300, holdout_every=5)
    assert "patch memory has a weight" in caplog.text
    # the toy is rendered exactly: the comparison has residuals at synthetic defects only
    assert detector.comparison.memory.mixing_weights.tolist() == [0, 0]
    reference = stack_references(map(detector.render_reference, CAMERAS))
    assert detector.comparison.compare(reference.rgb, reference)[1].max() < 1


def test_without_held_out_views_each_view_is_compared_with_the_others(weights, caplog):
    detector = fitted(weights, 300, views=4)
    assert "Too few views (4)" in caplog.text
    extractor = detector.comparison.comparator.extractor
    images = torch.stack([detector.render_reference(camera)[0] for camera in CAMERAS[::6]])
    distances_to_others = []
    for index in range(4):
        memory = PatchMemory(300)
        memory.fit(extractor, images[[other for other in range(4) if other != index]])
        distances_to_others.append(float(memory.distances(extractor, images[index : index + 1])[1]))
    scale = float(detector.comparison.memory.gain[1]) * torch.tensor(distances_to_others) + float(
        detector.comparison.memory.offset[1]
    )
    alphas = torch.stack([detector.render_reference(camera)[1] for camera in CAMERAS[::6]])
    expected = detector.comparison.comparator.score(detector.comparison.comparator(images, images, alphas), alphas)
    assert float(scale.mean()) == pytest.approx(float(expected.mean()), abs=1e-4)


def test_failed_held_out_poses_do_not_spoil_the_calibration(weights, caplog, monkeypatch):
    """A pose search that always fails calibrates as a pose search that succeeds."""
    caplog.set_level("INFO")
    right = fitted(weights, 0)
    assert "The pose of 2 of 2 held-out views" in caplog.text
    estimate_pose = PoseEstimator.forward

    def astray(self, scene, bank, query):
        estimate = estimate_pose(self, scene, bank, query)
        turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
        camera = replace(estimate.camera, camera_to_world=turn @ estimate.camera.camera_to_world)
        return replace(estimate, camera=camera, residual=1.5)

    monkeypatch.setattr(PoseEstimator, "forward", astray)
    wrong = fitted(weights, 0)
    assert "The pose of 0 of 2 held-out views" in caplog.text
    torch.testing.assert_close(wrong.estimator.typical_residual, right.estimator.typical_residual, rtol=0.2, atol=5e-3)
    torch.testing.assert_close(
        wrong.comparison.comparator.statistics.std, right.comparison.comparator.statistics.std, rtol=0.5, atol=0.02
    )
