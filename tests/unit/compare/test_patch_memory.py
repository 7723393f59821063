# SPDX-License-Identifier: Apache-2.0
"""Patches of good views: nearest ones by a loop, one scale with the comparison, and a share only where it is needed."""

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
    """At the size that the memory looks at them, so that nothing is resized."""
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(seed))


def patches_of(extractor: FeatureExtractor, image: torch.Tensor) -> np.ndarray:
    """Embedding of an image by the definition: stages of stride 8 and more, means of three by three cells."""
    stages = [stage for stage, stride in zip(extractor(image[None]), extractor.strides, strict=True) if stride >= 8]
    fine = stages[0].shape[-2:]
    parts = [functional.interpolate(functional.avg_pool2d(s, 3, 1, 1), fine, mode="bilinear") for s in stages]
    return torch.cat(parts, 1)[0].flatten(1).T.double().numpy()


def test_score_is_the_largest_patch_distance(extractor):
    memory = PatchMemory(patches=10**6)
    known, query = views(2, 0), views(1, 1)
    memory.fit(extractor, known)
    everything = np.concatenate([patches_of(extractor, image) for image in known])
    assert len(memory.bank) == len(everything)
    distances = [np.sqrt(np.square(everything - patch).sum(1).min()) for patch in patches_of(extractor, query[0])]
    assert float(memory.distances(extractor, query)[1]) == pytest.approx(max(distances), rel=1e-3)
    assert memory.distances(extractor, known)[1].amax() < 0.05 * max(distances)


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
    everything = torch.from_numpy(np.concatenate([patches_of(extractor, image) for image in views(2, 0)])).float()
    random = everything[torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))[:40]]
    assert torch.cdist(everything, memory.bank).amin(1).amax() < torch.cdist(everything, random).amin(1).amax()


def test_calibration_matches_mean_and_standard_deviation(extractor):
    memory = PatchMemory(40)
    memory.fit(extractor, views(2, 0))
    held_out = views(5, 1)
    wanted = (5 + 0.1 * torch.rand(5, 256, 256), torch.tensor([7.0, 8.0, 9.0, 8.5, 7.5]))
    memory.calibrate(memory.distances(extractor, held_out), wanted)
    for found, target in zip(memory(extractor, held_out), wanted, strict=True):
        assert float(found.mean()) == pytest.approx(float(target.mean()), rel=1e-3)
        assert float(found.std()) == pytest.approx(float(target.std()), rel=1e-3)
    other = PatchMemory(7)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other(extractor, held_out)[1], memory(extractor, held_out)[1])
    memory.calibrate(memory.distances(extractor, held_out[:1]), (wanted[0][:1], wanted[1][:1]))
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


def mistakes(good: torch.Tensor, bad: torch.Tensor) -> float:
    """Pairs in the wrong order by a loop, with half a mistake for luck."""
    pairs = [(float(one), float(other)) for one in good for other in bad]
    wrong = sum((one > other) + 0.5 * (one == other) for one, other in pairs)
    return (wrong + 0.5) / (len(pairs) + 1)


def test_mixing_weights_follow_ranking_errors(extractor):
    memory = PatchMemory(300)
    memory.fit(extractor, views(2, 0))
    good = views(3, 1)
    bad = good.repeat(2, 1, 1, 1)
    bad[:, :, 40:160, 60:140] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]  # what is known is gray noise
    alike, generator = torch.ones(6, 256, 256), torch.Generator().manual_seed(0)
    scores = 9 * torch.rand(9, generator=generator)
    maps = alike + torch.rand(alike.shape, generator=generator)
    memory.learn_mixing_weights(extractor, (good, maps[:3], scores[:3]), (bad, maps, scores[3:]))
    own = memory(extractor, good)[1], memory(extractor, bad)[1]
    expected = 1 - mistakes(*own) / mistakes(scores[:3], scores[3:])
    assert expected > 0.1
    assert float(memory.mixing_weights[1]) == pytest.approx(expected, abs=1e-5)
    own_maps = memory(extractor, bad)[0]
    changed = torch.zeros(256, 256, dtype=torch.bool)
    changed[40:160, 60:140] = True
    some = torch.arange(0, own_maps.numel(), 997)
    shown, inside = own_maps.flatten()[some], changed.repeat(6, 1, 1).flatten()[some]
    assert float(memory.mixing_weights[0]) == pytest.approx(1 - mistakes(shown[~inside], shown[inside]) / 0.5, abs=0.05)
    # what makes no mistakes needs nobody else
    right = (bad - good.repeat(2, 1, 1, 1)).abs().amax(1)
    memory.learn_mixing_weights(extractor, (good, maps[:3], torch.zeros(3)), (bad, right, torch.ones(6)))
    assert memory.mixing_weights.tolist() == [0, 0]


def test_mixing_weights_are_a_minimum(extractor):
    memory = PatchMemory(300)
    memory.fit(extractor, views(2, 0))
    queries, compared = views(2, 1), (torch.ones(2, 256, 256), torch.tensor([3.0, 4.0]))
    assert memory.mix(extractor, queries, compared, torch.zeros(2)) is compared
    memory.mixing_weights.copy_(torch.tensor([0.0, 0.25]))
    maps, scores = memory.mix(extractor, queries, compared, torch.tensor([0.0, 0.5]))
    own_maps, own = memory(extractor, queries)
    torch.testing.assert_close(maps, torch.stack([compared[0][0], 0.5 * compared[0][1] + 0.5 * own_maps[1]]))
    torch.testing.assert_close(scores, torch.stack([0.75 * 3 + 0.25 * own[0], 0.5 * 4 + 0.5 * own[1]]))
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
    drawn = []

    def record_seed(images: torch.Tensor, seed: int) -> torch.Tensor:
        drawn.append(seed)
        return add_synthetic_defects(images, seed)

    monkeypatch.setattr(reference_comparison, "add_synthetic_defects", record_seed)
    comparator = CalibratedComparator(NetworkSettings(TINY, (0, 1, 2), weights_path=weights), window=WindowSettings(64))
    comparison = ReferenceComparison(comparator, surface_views=0, memory_patches=10, seed=5)
    detector = SceneDetector(make_toy(), make_estimator(), comparison, holdout_every=3)
    images = torch.stack([detector.render_reference(camera)[0] for camera in CAMERAS])
    detector.fit(images, CAMERAS, None, lambda *_: 30.0)
    assert drawn == [5, 6, 7, 8, 9]


def test_memory_is_mixed_in_for_low_confidence_queries_only(weights):
    with_memory, without = fitted(weights, 300), fitted(weights, 0)
    found = with_memory.render_reference(CAMERAS[7])[0]
    lost = torch.ones(3, SIZE, SIZE)
    lost[:, 20:44, 10:54] = views(1, 5)[0, :, :24, :44]
    ours, theirs = (one(torch.stack([found, lost])) for one in (with_memory, without))
    doubt = (1 - theirs.pose_confidence / 0.5).clamp(min=0)
    assert doubt[0] == 0
    assert doubt[1] > 0.5
    assert torch.equal(ours.pred_score[0], theirs.pred_score[0])
    assert torch.equal(ours.anomaly_map[0], theirs.anomaly_map[0])
    maps, scores = with_memory.comparison.memory(with_memory.comparison.comparator.extractor, lost[None])
    expected = (1 - doubt[1]) * theirs.pred_score[1] + doubt[1] * scores[0]
    assert float(ours.pred_score[1]) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(ours.anomaly_map[1, 0], (1 - doubt[1]) * theirs.anomaly_map[1, 0] + doubt[1] * maps[0])
    with pytest.raises(ValueError, match="memory_patches"):
        fitted(weights, -1)


def test_held_out_views_set_the_mixing_weights(weights, caplog):
    caplog.set_level("INFO")
    few = fitted(weights, 300)
    assert "patch memory has a weight" not in caplog.text, "two held-out views say nothing"
    assert few.comparison.memory.mixing_weights.tolist() == [0, 0]
    detector = fitted(weights, 300, holdout_every=5)
    assert "patch memory has a weight" in caplog.text
    # the toy is rendered as it is: no residual of the comparison is above 0 but for damage
    assert detector.comparison.memory.mixing_weights.tolist() == [0, 0]
    seen = stack_references(map(detector.render_reference, CAMERAS))
    assert detector.comparison.compare(seen.rgb, seen)[1].max() < 1


def test_without_held_out_views_each_view_is_compared_with_the_others(weights, caplog):
    detector = fitted(weights, 300, views=4)
    assert "Too few views (4)" in caplog.text
    extractor = detector.comparison.comparator.extractor
    images = torch.stack([detector.render_reference(camera)[0] for camera in CAMERAS[::6]])
    alone = []
    for index in range(4):
        memory = PatchMemory(300)
        memory.fit(extractor, images[[other for other in range(4) if other != index]])
        alone.append(float(memory.distances(extractor, images[index : index + 1])[1]))
    scale = float(detector.comparison.memory.gain[1]) * torch.tensor(alone) + float(
        detector.comparison.memory.offset[1]
    )
    alphas = torch.stack([detector.render_reference(camera)[1] for camera in CAMERAS[::6]])
    expected = detector.comparison.comparator.score(detector.comparison.comparator(images, images, alphas), alphas)
    assert float(scale.mean()) == pytest.approx(float(expected.mean()), abs=1e-4)


def test_failed_held_out_poses_do_not_spoil_the_calibration(weights, caplog, monkeypatch):
    """A search that always ends on the other side: what is learned is what a right search would have taught."""
    caplog.set_level("INFO")
    right = fitted(weights, 0)
    assert "The pose of 2 of 2 held-out views" in caplog.text
    search = PoseEstimator.forward

    def astray(self, scene, bank, query):
        estimate = search(self, scene, bank, query)
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
