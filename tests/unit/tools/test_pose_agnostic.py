# SPDX-License-Identifier: Apache-2.0
"""The benchmark's figures agree with slow definitions, finished runs are not repeated, and the report is complete."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from anomalib_pose.compare import FeatureExtractor
from anomalib_pose.geometry import Camera, look_at, se3_exp
from anomalib_pose.sample_data import write_mad, write_mip
from sample_scenes import make_scene

TOOLS = Path(__file__).resolve().parents[3] / "tools" / "benchmark"
BACKBONE = "mobilenetv2_050"


@pytest.fixture(scope="module")
def tool():
    """Modules of the benchmark by the last part of their names; the program itself is "main"."""
    sys.path.insert(0, str(TOOLS))
    parts = ("data", "methods", "models", "report", "runs", "scores")
    modules = {part: importlib.import_module(f"pose_agnostic_{part}") for part in parts}
    yield type("Tool", (), {**modules, "main": importlib.import_module("pose_agnostic")})
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(BACKBONE, pretrained=False).state_dict(), path)
    return path


def random_scores(seed, good=9, bad=14):
    """Make scores and labels of good and defective queries; several scores are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * good + [1] * bad)
    return np.round(rng.normal(size=len(labels)) + labels, 1).tolist(), labels.tolist()


@pytest.mark.parametrize("count", [7, 24, 69, 210])
def test_selected_views_are_evenly_spaced(tool, count):
    assert tool.data.select_views(count, 0) == list(range(count))
    for views, expected in ((0.1, max(1, round(0.1 * count))), (0.2, round(0.2 * count)), (4, 4), (count, count)):
        selected = tool.data.select_views(count, views)
        assert len(selected) == len(set(selected)) == expected
        gaps = np.diff([*selected, selected[0] + count])
        assert gaps.max() - gaps.min() <= 1
        assert abs((selected[0] + selected[-1]) / 2 - (count - 1) / 2) <= 1
    with pytest.raises(ValueError, match=f"at most {count}, the number of training views, got {count + 1}"):
        tool.data.select_views(count, count + 1)


def test_data_sets_are_named_by_text_or_file(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = tool.data.parse_data("warm=mad:car:queries=other:views=0.1")
    root, other = str(tmp_path / "mad"), str(tmp_path / "other")
    assert spec == tool.data.DataSpec("warm", root, "car", other, views=0.1)
    assert tool.data.parse_data("own=x:queries=q:masks=m") == tool.data.DataSpec(
        "own", str(tmp_path / "x"), "", "q", "m"
    )
    content = [{"name": "warm", "root": "mad", "category": "car", "queries": "other", "views": 0.1}]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    assert tool.data.read_data_file(tmp_path / "data.yaml") == [spec]
    for text in ("car", "a=b:views=-1", "a=b:views=2.5", "a=b:views=x", "a=b:c:d", "a=b:size=3", "a b=c", "=b"):
        with pytest.raises(ValueError, match=r"views|expected NAME=ROOT|needs a name|could not convert|is given as"):
            tool.data.parse_data(text)
    (tmp_path / "data.yaml").write_text("name: car")
    with pytest.raises(ValueError, match="should hold a list of data sets"):
        tool.data.read_data_file(tmp_path / "data.yaml")


@pytest.mark.slow
def test_queries_in_another_light_come_from_another_root(tool, tmp_path):
    for name, variation in (("day", 0.0), ("dusk", 0.9)):
        counts = {"views": 6, "test_good": 1, "test_per_defect": 1}
        write_mad(tmp_path / name, "toy", 0, 32, brightness_variation=variation, progress=False, **counts)
    own = [
        tool.data.stacked(part) for part in tool.data.load(tool.data.DataSpec("a", str(tmp_path / "day"), "toy"), 24)
    ]
    spec = tool.data.DataSpec("b", str(tmp_path / "day"), "toy", str(tmp_path / "dusk"), views=2)
    train, test = (tool.data.stacked(part) for part in tool.data.load(spec, 24))
    other = tool.data.stacked(tool.data.load(tool.data.DataSpec("c", str(tmp_path / "dusk"), "toy"), 24)[1])
    assert torch.equal(train.image, own[0].image[[1, 4]])
    assert torch.equal(train.camera_to_world, own[0].camera_to_world[[1, 4]])
    assert torch.equal(test.image, other.image)
    assert not torch.equal(test.image, own[1].image)
    assert test.image.shape == (4, 3, 24, 24)
    assert (test.mask.flatten(1).any(1).long() == test.label).all()
    assert test.camera_to_world.shape == (4, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("colmap", [False, True])
def test_layouts_of_several_lights_are_recognized(tool, tmp_path, colmap):
    if colmap:
        pytest.importorskip("pycolmap", reason="the extra colmap is not installed")
    write_mip(tmp_path, "toy", 0, 32, views=6, test_good=2, test_per_defect=2, lights=2, colmap=colmap, progress=False)
    train, test = (
        tool.data.stacked(part) for part in tool.data.load(tool.data.DataSpec("a", str(tmp_path), "toy"), 24)
    )
    assert len(train.image) == 6
    assert test.label.sort().values.tolist() == [0] * 4 + [1] * 6
    assert (test.mask.flatten(1).any(1).long() == test.label).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_equals_plain_resampling(tool, seed):
    scores, labels = random_scores(seed)
    assert tool.scores.image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    rng = np.random.default_rng(seed)
    good = [score for score, label in zip(scores, labels, strict=True) if not label]
    bad = [score for score, label in zip(scores, labels, strict=True) if label]
    good_draws, bad_draws = rng.integers(len(good), size=(300, len(good))), rng.integers(len(bad), size=(300, len(bad)))
    areas = []
    for good_sample, bad_sample in zip(good_draws, bad_draws, strict=True):
        values = [good[index] for index in good_sample] + [bad[index] for index in bad_sample]
        areas.append(roc_auc_score([0] * len(good) + [1] * len(bad), values))
    expected = np.percentile(areas, [2.5, 97.5])
    assert tool.scores.bootstrap_interval(scores, labels, seed, 300) == pytest.approx(tuple(expected))
    assert tool.scores.bootstrap_interval(scores, labels, seed, 300) != tool.scores.bootstrap_interval(
        scores, labels, seed + 9, 300
    )


def test_without_good_and_defective_queries_there_is_no_area(tool):
    assert tool.scores.image_auroc([1.0, 2.0], [0, 0]) is None
    assert tool.scores.bootstrap_interval([1.0, 2.0], [1, 1], 0) is None
    maps, labels = torch.rand(2, 8, 8), torch.tensor([0, 1])
    assert tool.scores.pixel_figures(maps, torch.rand(2), labels, None) == {"pixel_auroc": None, "aupro": None}


def test_pixel_auroc_equals_sklearn(tool):
    torch.manual_seed(0)
    masks = torch.zeros(4, 16, 16)
    masks[2:, 3:9, 4:8] = 1
    maps = torch.rand(4, 16, 16) + 0.4 * masks
    figures = tool.scores.pixel_figures(maps, maps.amax((1, 2)), torch.tensor([0, 0, 1, 1]), masks)
    expected = roc_auc_score(masks.flatten().int(), maps.flatten())
    assert figures["pixel_auroc"] == pytest.approx(expected, abs=2e-3)
    assert 0 < figures["aupro"] < 1


def test_the_worst_ranked_queries_come_first(tool):
    scores, labels = [0.1, 0.9, 0.3, 0.2, 0.8, 0.7], [0, 0, 0, 1, 1, 1]
    # the good 0.9 is above all defects, the defect 0.2 above one good query of three, the good 0.3 above one defect
    assert tool.scores.worst_ranked(scores, labels, 3) == [1, 3, 4] or tool.scores.worst_ranked(scores, labels, 2) == [
        1,
        3,
    ]
    assert tool.scores.worst_ranked(scores, labels, 6)[-1] == 0
    assert tool.scores.worst_ranked([1.0, 3.0, 2.0], [0, 0, 0], 2) == [1, 2]


def test_pose_figures_of_known_errors(tool):
    center = torch.tensor([0.2, 0.0, 0.1])
    up = torch.tensor([0.0, 0, 1])
    eyes = torch.tensor([[4.0, 0, 0.1], [0.2, 4, 0.1], [0.2, -4, 0.1], [-4, 0.0, 0.1]])
    truth = torch.stack([look_at(eye, center, up) for eye in eyes]).double()
    angles = torch.tensor([0.5, 0.8, 2.0, 8.0], dtype=torch.float64)
    tangents = torch.zeros(4, 6, dtype=torch.float64)
    tangents[:, 5] = torch.deg2rad(angles)
    rotated = truth @ se3_exp(tangents)
    shares = torch.tensor([0.5, 3.0, 0.1, 0.2], dtype=torch.float64)
    away = (truth[:, :3, 3] - center.double()).norm(dim=1)
    rotated[:, 2, 3] += shares / 100 * away
    errors = tool.scores.pose_errors(rotated, truth, center)
    np.testing.assert_allclose(errors[0], angles, atol=1e-5)
    np.testing.assert_allclose(errors[1], shares, atol=1e-5)
    figures = tool.scores.pose_figures(*errors)
    expected = {"within_1_deg": 0.5, "within_1_deg_1_percent": 0.25, "failed_poses": 0.25}
    assert figures == pytest.approx({**expected, "median_deg": 1.4, "median_percent": 0.35}, abs=1e-5)
    assert set(tool.scores.pose_figures([], []).values()) == {None}


def test_baselines_use_the_same_network_as_the_comparison(tool, weights):
    spec = tool.data.DataSpec("toy", "nowhere", "toy")
    settings = tool.methods.Settings(spec, "patchcore", backbone=BACKBONE, weights="random.pth", window=64)
    model = tool.models.baseline_model(settings, str(weights)).eval()
    extractor = FeatureExtractor(
        BACKBONE, (2, 3), weights_path=str(weights), pad_type="same", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    image = torch.rand(1, 3, 64, 64)
    for transform in (model.pre_processor, model.pre_processor.transform):  # the first is what is exported
        baseline_features = model.model.feature_extractor(transform(image))
        for layer, expected in zip(("blocks.2", "blocks.4"), extractor(image), strict=True):
            torch.testing.assert_close(baseline_features[layer], expected, atol=1e-4, rtol=1e-4)


def test_a_cached_fit_is_not_repeated(tool, tmp_path):
    class Fit:
        def __init__(self, steps):
            self.steps, self.progress = steps, True

        def __call__(self, scene, images, cameras, foreground, held_out):
            Fit.calls += 1
            scene.set_raw(make_scene(30 + self.steps).raw)
            return 20.0

    Fit.calls = 0
    poses = look_at(torch.tensor([0.0, -3, 0]), torch.zeros(3), torch.tensor([0.0, 0, 1]))[None]
    cameras = Camera.from_fov(poses, 0.7, 8, 6)
    images = torch.rand(1, 3, 6, 8)

    def fitted(steps, images):
        scene = make_scene(3)
        psnr = tool.models.CachedFit(Fit(steps), tmp_path)(scene, images, cameras, None, (0,))
        return psnr, scene

    first, again = fitted(5, images), fitted(5, images)
    assert (first[0], again[0], Fit.calls) == (20.0, 20.0, 1)
    for name, value in first[1].state_dict().items():
        assert torch.equal(value, again[1].state_dict()[name]), name
    fitted(6, images)
    fitted(5, images + 0.01)
    assert Fit.calls == 3
    assert not list(tmp_path.glob("*.partial"))


def test_the_stopwatch_takes_the_retrieval_from_the_pose_search(tool, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tool.models.time, "perf_counter", lambda: clock[0])
    stopwatch = tool.models.Stopwatch("cpu")

    def spend(seconds, inner=lambda: None):
        def function():
            clock[0] += seconds
            return inner()

        return function

    coarse = stopwatch.timed("coarse", spend(1.0))
    pose = stopwatch.timed("pose", spend(4.0, coarse))
    total = stopwatch.timed("total", spend(0.5, pose))
    for _ in range(2):
        total()
    assert stopwatch.means(2) == pytest.approx({"coarse": 1.0, "fine": 4.0, "total": 5.5})


def plan(tool, tmp_path, *words):
    arguments = tool.main.parser().parse_args(["--data", f"toy={tmp_path}:toy", "--out", str(tmp_path / "out"), *words])
    return tool.main.planned(arguments)


@pytest.fixture
def children(tool, monkeypatch):
    """Names of the runs that were started; each writes a result, except runs of a method that fails."""
    started = []

    def run_child(settings, _weights, out):
        started.append(settings.name)
        if settings.method == "omniposead":
            return 1
        result = stored(settings, seed=len(started))
        path = tool.runs.run_path(out, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        return 0

    monkeypatch.setattr(tool.main, "run_child", run_child)
    return started


def stored(settings, seed):
    """Make a result as a run stores it."""
    scores, labels = random_scores(seed)
    queries = [
        {"file": f"kind/{index}.png", "label": label, "score": score, "angle_deg": 0.1 * index + 0.05}
        for index, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    row = {
        "image_size": "32x32", "views": 24, "queries": len(labels), "defective": sum(labels), "pixel_auroc": 0.91,
        "image_auroc": roc_auc_score(labels, scores), "image_auroc_low": 0.6, "image_auroc_high": 0.95, "aupro": None,
        "within_1_deg": 0.5, "within_1_deg_1_percent": 0.25, "failed_poses": 0.125, "median_deg": 1.5,
        "median_percent": 0.75, "seconds_per_query": 1.25, "doubtful_poses": 0.0, "oracle_image_auroc": 0.987,
        "oracle_pixel_auroc": 0.976, "oracle_aupro": None,
    }  # fmt: skip
    seconds = {"total": 1.25, "coarse": 0.05, "fine": 0.8, "render": 0.1, "compare": 0.2}
    return {"settings": settings.stored(), "row": row, "seconds": seconds, "queries": queries, "pictures": []}


def test_finished_runs_are_skipped_and_changed_ones_repeated(tool, tmp_path, children):
    out = tmp_path / "out"
    words = ("--methods", "splatpose", "piad", "--seeds", "0", "1")
    runs = plan(tool, tmp_path, *words)
    assert tool.main.run_all(runs, "", out, 1) == []
    assert children == ["toy-splatpose-0", "toy-splatpose-1", "toy-piad-0", "toy-piad-1"]
    children.clear()
    tool.main.run_all(plan(tool, tmp_path, *words, "--paper-steps", "7", "--window", "99"), "", out, 1)
    assert children == []  # neither concerns these methods
    changed = [runs[0], replace(runs[1], steps=50), runs[2], replace(runs[3], size=64)]
    tool.main.run_all(changed, "", out, 2)
    assert sorted(children) == ["toy-piad-1", "toy-splatpose-1"]
    children.clear()
    tool.main.run_all(changed, "", out, 1)
    assert children == []


def test_a_failed_run_costs_only_itself(tool, tmp_path, children):
    words = ["--data", f"toy={tmp_path}:toy", "--out", str(tmp_path / "out"), "--methods", "omniposead", "splatpose"]
    assert tool.main.main(words) == 1
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (content["failed"], len(content["rows"])) == (["toy-omniposead-0"], 1)
    assert "toy-omniposead-0 failed" in (tmp_path / "out" / "table.md").read_text()
    assert children == ["toy-omniposead-0", "toy-splatpose-0"]


def test_settings_survive_the_way_to_the_child(tool, tmp_path, weights):
    words = ("--weights", str(weights), "--layers", "blocks.1", "--methods")
    for settings in plan(tool, tmp_path, *words, *tool.methods.METHODS):
        restored = tool.methods.Settings.restored(json.loads(json.dumps(tool.main.asdict(settings))))
        assert restored == settings
        assert json.loads(json.dumps(settings.stored())) == settings.stored()
    with pytest.raises(ValueError, match=r"patchcore compares features of a network: give --weights"):
        plan(tool, tmp_path, "--methods", "patchcore")
    with pytest.raises(FileNotFoundError, match=r"--weights names a file"):
        plan(tool, tmp_path, "--weights", "nowhere.pth")
    with pytest.raises(ValueError, match="need different names"):
        plan(tool, tmp_path, "--data", f"toy={tmp_path}:car", "--methods", "splatpose")


def test_each_ablation_changes_the_setting_in_its_name(tool, tmp_path, weights):
    settings = {
        run.method: run
        for run in plan(tool, tmp_path, "--weights", str(weights), "--backbone", BACKBONE, "--paper-steps", "11")
    }

    def detector(method):
        return tool.models.scene_model(settings[method], str(weights))

    default = detector("splatpose")
    assert default.model.comparison.comparator.extractor.weights_path == str(weights)
    assert (default.model.comparison.surface_views, default.model.estimator.starts) == (120, 3)
    scoring = default.model.comparison.comparator.scoring
    assert (scoring.tolerance, scoring.self_normalization) == (1.0, 1.0)
    assert detector("splatpose_no_surface").model.comparison.surface_views == 0
    assert default.model.comparison.memory is not None
    assert detector("splatpose_no_memory").model.comparison.memory is None
    assert detector("splatpose_one_start").model.estimator.starts == 1
    assert detector("splatpose_no_own_level").model.comparison.comparator.scoring.self_normalization == 0
    assert detector("splatpose_no_tolerance").model.comparison.comparator.scoring.tolerance == 0
    assert detector("splatpose_no_network").model.comparison.comparator.extractor is None
    assert type(detector("splatpose_paper_comparison").model.comparison.comparator).__name__ == "PaperComparator"
    paper = detector("splatpose_paper")
    assert (paper.fit_settings.steps, paper.fit_settings.density, paper.model.estimator.starts) == (11, "adaptive", 1)
    assert paper.model.comparison.comparator.extractor.backbone == BACKBONE
    assert detector("piad").model.comparison.comparator.reflectance is not None


def test_the_report_has_every_stored_run(tool, tmp_path):
    out = tmp_path / "out"
    runs = plan(tool, tmp_path, "--methods", "splatpose", "piad")
    for number, settings in enumerate(runs):
        result = stored(settings, number)
        if number == 0:
            picture = "pictures/toy-splatpose-0/0.png"
            (out / picture).parent.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 24, 3), np.uint8)).save(out / picture)
            result["pictures"] = [{"picture": picture, "query": "kind/3.png"}]
        path = tool.runs.run_path(out, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    tool.main.report(runs, out)
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"roc_toy.png", "pose_toy.png", "latency.png", "failures_toy-splatpose-0.png"}
    for name in pictures:
        assert np.asarray(Image.open(out / name).convert("L")).std() > 1
    lines = (out / "table.md").read_text().splitlines()
    scores, labels = random_scores(0)
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "toy", "SplatPose", "0", "32x32", "none", "default", "24", "23 (14)",
        f"{roc_auc_score(labels, scores):.3f} [0.600, 0.950]", "0.910", "", "50 % (25 %)", "1.500° (0.750%)", "12 %",
        "0 %", "1.250", "0.987 / 0.976 / -",
    ]  # fmt: skip
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["SplatPose", "PIAD"]
    assert (rows[0]["coarse_s"], rows[0]["compare_s"]) == (0.05, 0.2)
    stale = [replace(runs[0], steps=9), runs[1]]
    tool.main.report(stale, out)
    content = json.loads((out / "results.json").read_text())
    assert ([row["method"] for row in content["rows"]], content["failed"]) == (["PIAD"], ["toy-splatpose-0"])


def test_roc_points_equal_sklearn(tool):
    scores, labels = random_scores(3)
    false, true = tool.report.roc_points(np.array(scores), np.array(labels) > 0)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])


def test_the_true_pose_replaces_the_search(tool):
    true_pose = tool.models.TruePose()
    pose = look_at(torch.tensor([0.0, -3, 0.4]), torch.zeros(3), torch.tensor([0.0, 0, 1]))
    true_pose.camera_to_world = pose
    query = tool.models.Query(torch.rand(3, 6, 8), torch.eye(3))
    estimate = true_pose(None, None, query, lambda query, camera: query)
    assert torch.equal(estimate.camera.camera_to_world, pose)
    assert estimate.confidence == 1


@pytest.mark.slow
def test_the_whole_benchmark_on_a_toy(tool, weights, tmp_path, capfd):
    write_mad(tmp_path, "toy", 0, 32, views=24, test_good=2, test_per_defect=1, progress=False)
    out = tmp_path / "out"
    words = [
        "--data", f"few={tmp_path}:toy:views=0.5", "--methods", "splatpose", "patchcore", "--size", "32", "--steps",
        "15", "--window", "64", "--out", str(out), "--backbone", BACKBONE, "--weights", str(weights),
    ]  # fmt: skip
    assert tool.main.main([*words, "--data", f"gone={tmp_path}:none"]) == 1
    content = json.loads((out / "results.json").read_text())
    rows = [(row["data"], row["method"], row["views"]) for row in content["rows"]]
    assert rows == [("few", "SplatPose", 12), ("few", "Patchcore", 12)]
    assert content["failed"] == ["gone-patchcore-0", "gone-splatpose-0"]
    assert "There is no category 'none'" in (out / "logs" / "gone-splatpose-0.log").read_text()
    result = json.loads((out / "runs" / "few-splatpose-0.json").read_text())
    scores, labels = zip(*((query["score"], query["label"]) for query in result["queries"]), strict=True)
    assert result["row"]["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    angles = [query["angle_deg"] for query in result["queries"]]
    assert result["row"]["median_deg"] == pytest.approx(np.median(angles))
    parts = [result["seconds"][part] for part in ("coarse", "fine", "render", "compare")]
    assert min(parts) > 0
    assert sum(parts) <= result["seconds"]["total"]
    assert 0 <= result["row"]["oracle_image_auroc"] <= 1
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert tool.main.main(words) == 0
    assert times == {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
