# SPDX-License-Identifier: Apache-2.0
"""Measure the parts of the scene models on a data set in MAD's layout whose test poses are known.

    python tools/benchmark/splat_pose.py fit     DATA --category car --size 200 --out results/benchmark
    python tools/benchmark/splat_pose.py pose    DATA --category car --size 200 --out results/benchmark --adam 10
    python tools/benchmark/splat_pose.py compare DATA --category car --size 200 --out results/benchmark --weights FILE

``--scene grid`` uses OmniposeAD's field instead of Gaussians. ``--queries`` names another data set, whose test images
in other light replace those of DATA.

``fit`` measures held-out PSNR and seconds, and stores the detector. ``pose`` measures success rate, error, renders and
seconds of both refiners from the same initial poses, and stores the references. ``compare`` measures AUROC and AUPRO of
the comparators on the stored references.
"""

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from anomalib.metrics.aupro import _AUPRO as AUPRO
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from anomalib_pose.compare import (
    CalibratedComparator,
    Comparator,
    NetworkSettings,
    PaperComparator,
    ReferenceComparison,
    make_comparator,
)
from anomalib_pose.compare.paper import ProductComparator
from anomalib_pose.compare.reference import stack_references
from anomalib_pose.data import MAD
from anomalib_pose.data.files import write_json
from anomalib_pose.geometry import Camera, pose_error
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.scene_detector import FitScene
from anomalib_pose.models.omnipose_ad.torch_model import FIELDS, FieldFit, make_field
from anomalib_pose.pose import PoseEstimate, PoseEstimator, Query, Refiner, ViewBank, make_estimator, make_refiner
from anomalib_pose.pose.adam import AdamRefiner
from anomalib_pose.scene import FitSettings, GaussianScene, VoxelFitSettings, white_foreground

console = Console()

Search = Callable[[Query], PoseEstimate]
"""Estimates the camera of a query."""


def root_of(arguments: argparse.Namespace) -> str:
    """Return the folder of the data set; with ``--queries``, a folder of links to training views and to the queries."""
    if not arguments.queries:
        return str(arguments.data)
    root = result_path(arguments, "data")
    source, query_source = Path(arguments.data).resolve(), Path(arguments.queries).resolve()
    category = arguments.category
    links = {f"{category}/{name}": source / category / name for name in ("train", "transforms.json")}
    links |= {f"{category}/{name}": query_source / category / name for name in ("test", "ground_truth")}
    links["_hidden"] = query_source / "_hidden"
    for name, target in links.items():
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return str(root)


def stacked(arguments: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Return training and test images with cameras, labels and masks, and the names of the test files."""
    data = MAD(root=root_of(arguments), category=arguments.category, image_size=arguments.size, num_workers=0)
    data.prepare_data()
    data.setup()
    parts, files = [], []
    for dataset in (data.train_data, data.test_data):
        items = [dataset[index] for index in range(len(dataset))]
        part = {
            "image": torch.stack([item.image for item in items]),
            "K": torch.stack([item.intrinsics for item in items]),
            "camera_to_world": torch.stack([item.camera_to_world.float() for item in items]),
        }
        if dataset is data.test_data:
            empty = torch.zeros(items[0].image.shape[-2:])
            part["label"] = torch.tensor([int(item.gt_label) for item in items])
            part["mask"] = torch.stack([empty if item.gt_mask is None else item.gt_mask.float() for item in items])
            files = ["/".join(Path(item.image_path).parts[-2:]) for item in items]
        parts.append(part)
    return parts[0], parts[1], files


def empty_detector(scene: str) -> SceneDetector:
    return SceneDetector(
        GaussianScene(FitSettings.sh_degree) if scene == "gaussians" else make_field(scene),
        make_estimator(),
        ReferenceComparison(CalibratedComparator()),
        nearby_views=0 if scene == "mlp" else 3,
        check_support=scene == "grid",
    )


def result_path(arguments: argparse.Namespace, file_name: str, *, fitted: bool = False) -> Path:
    """Return the path of a result; files of the fit (``fitted``) do not depend on the queries."""
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    scene = "" if arguments.scene == "gaussians" else f"{arguments.scene}_"
    queries = f"{Path(arguments.queries).name}_" if arguments.queries and not fitted else ""
    return folder / f"{arguments.category}_{arguments.size}_{scene}{queries}{file_name}"


def fit(arguments: argparse.Namespace) -> dict[str, float]:
    """Fit a detector with the default recipe, calibrate it and store it."""
    train, _, _ = stacked(arguments)
    height, width = train["image"].shape[-2:]
    cameras = Camera(train["camera_to_world"], train["K"], width, height)
    detector = empty_detector(arguments.scene)
    fit_scene: FitScene
    if arguments.scene == "gaussians":
        settings = FitSettings(steps=arguments.steps or FitSettings.steps, max_gaussians=arguments.gaussians)
        fit_scene = GaussianFit(settings, None, "auto", progress=True)
    else:
        fit_scene = FieldFit(arguments.steps or VoxelFitSettings.steps, 0, None, progress=True)
    seconds = {}

    def timed(*fit_arguments: Any) -> float:
        start = time.perf_counter()
        psnr = fit_scene(*fit_arguments)
        seconds["fit_s"] = time.perf_counter() - start
        return psnr

    start = time.perf_counter()
    detector.fit(train["image"], cameras, None, timed)
    seconds["fit_bank_calibration_s"] = time.perf_counter() - start
    torch.save(detector.state_dict(), result_path(arguments, "detector.pt", fitted=True))
    return {"psnr_db": float(detector.psnr), **seconds}


def load_detector(arguments: argparse.Namespace) -> SceneDetector:
    detector = empty_detector(arguments.scene)
    detector.load_state_dict(torch.load(result_path(arguments, "detector.pt", fitted=True), weights_only=True))
    return detector


def queries(test: dict[str, Tensor]) -> list[Query]:
    masks = white_foreground(test["image"])
    return [
        Query(image, K, None if masks is None else masks[index])
        for index, (image, K) in enumerate(zip(test["image"], test["K"], strict=True))
    ]


def references(detector: SceneDetector, test_queries: list[Query]) -> tuple[Tensor, Tensor, Tensor]:
    """Return renderings, alphas and surface points at the estimated poses of queries."""
    cameras = [detector.estimator(detector.scene, detector.bank, query).camera for query in test_queries]
    stack = stack_references(detector.render_reference(camera) for camera in cameras)
    return stack.rgb, stack.alpha, stack.points


def pose(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure both refiners, alternating on a subset of the queries; store the references of Gauss-Newton."""
    _, test, files = stacked(arguments)
    detector = load_detector(arguments)
    test_queries, truths, center = queries(test), test["camera_to_world"], detector.scene.center
    gauss_newton = make_refiner("gauss_newton")
    default = search_with(detector, gauss_newton, arguments.starts)
    result = {"gauss_newton": measure_poses(default, test_queries, truths, center)}
    stored = dict(zip(("reference", "alpha", "points"), references(detector, test_queries), strict=True))
    torch.save({**stored, "files": files}, result_path(arguments, "references.pt"))
    if arguments.adam:
        count = min(arguments.adam, len(test_queries))
        subset = torch.linspace(0, len(test_queries) - 1, count).long().tolist()
        searches = {
            "gauss_newton, subset": default,
            "gauss_newton, one initial pose, subset": search_with(detector, gauss_newton, 1),
            "adam, one initial pose, subset": search_with(detector, make_refiner("adam"), 1),
        }
        result |= measure_alternately(searches, [test_queries[index] for index in subset], truths[subset], center)
    return result


class SingleViewBank:
    """A bank that returns only its most similar view, so that no refiner gets a second initial pose."""

    def __init__(self, bank: ViewBank) -> None:
        self.bank = bank

    def nearest(self, query: Query, count: int) -> tuple[Tensor, Tensor]:
        """Return the most similar view; ``count`` is ignored."""
        del count
        return self.bank.nearest(query, 1)


def search_with(detector: SceneDetector, refiner: Refiner, starts: int) -> Search:
    """Return the detector's search with the given refiner."""
    default = detector.estimator
    robust_refiner = None if isinstance(refiner, AdamRefiner) else default.robust_refiner
    estimator = PoseEstimator(refiner, starts, default.retry_below, robust_refiner)
    bank = detector.bank if starts > 1 else SingleViewBank(detector.bank)
    estimator.typical_residual = default.typical_residual
    return lambda query: estimator(detector.scene, bank, query)


def measure_poses(search: Search, test_queries: list[Query], truths: Tensor, center: Tensor) -> dict[str, float]:
    """Measure errors and seconds of a pose search on queries whose poses are known."""
    return measure_alternately({"": search}, test_queries, truths, center)[""]


def measure_alternately(
    searches: dict[str, Search], test_queries: list[Query], truths: Tensor, center: Tensor
) -> dict[str, dict[str, float]]:
    """Measure several searches; all take one query before the next, because the speed of the machine changes."""
    measured: dict[str, list[tuple[PoseEstimate, float]]] = {name: [] for name in searches}
    for query in test_queries:
        for name, search in searches.items():
            start = time.perf_counter()
            estimate = search(query)
            measured[name].append((estimate, time.perf_counter() - start))
    return {name: pose_figures(estimates, truths, center) for name, estimates in measured.items()}


def pose_figures(measured: list[tuple[PoseEstimate, float]], truths: Tensor, center: Tensor) -> dict[str, float]:
    """Summarize errors, renders and seconds of pose estimates."""
    angles, percents = [], []
    for (estimate, _), truth in zip(measured, truths, strict=True):
        angle, distance = pose_error(estimate.camera.camera_to_world.double(), truth.double())
        angles.append(float(torch.rad2deg(angle)))
        percents.append(100 * float(distance) / float((truth[:3, 3] - center).norm()))
    angle, percent = torch.tensor(angles), torch.tensor(percents)
    return {
        "queries": len(measured),
        "within_1_deg": float((angle < 1).float().mean()),
        "within_1_deg_1_percent": float(((angle < 1) & (percent < 1)).float().mean()),
        "within_5_deg_5_percent": float(((angle < 5) & (percent < 5)).float().mean()),
        "median_deg": float(angle.median()),
        "median_percent": float(percent.median()),
        "worst_deg": float(angle.max()),
        "median_renders": float(torch.tensor([float(estimate.n_renders) for estimate, _ in measured]).median()),
        "median_seconds": float(torch.tensor([seconds for _, seconds in measured]).median()),
        "least_confidence": min(estimate.confidence for estimate, _ in measured),
    }


def held_out_pairs(detector: SceneDetector, train: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the held-out views, and references at their estimated poses."""
    held_out = slice(detector.holdout_every // 2, None, detector.holdout_every)
    views = {name: tensor[held_out] for name, tensor in train.items()}
    return views["image"], *references(detector, queries(views))[:2]


def calibrate(
    detector: SceneDetector,
    comparator: Comparator,
    pairs: tuple[Tensor, Tensor, Tensor],
    train: dict[str, Tensor],
) -> None:
    """Put a comparator into a fitted detector and calibrate it as the fit does."""
    detector.comparison.comparator = comparator
    comparator.fit_calibration(*pairs)
    height, width = train["image"].shape[-2:]
    cameras = Camera(train["camera_to_world"], train["K"], width, height)
    detector.comparison.calibrate_surface(
        train["image"], lambda index: detector.render_reference(cameras[index]), detector.rendered
    )


CONVERTED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "pad_type": "same"}
"""Fields of ``NetworkSettings`` for weights that were converted from TensorFlow."""


def network_settings(arguments: argparse.Namespace) -> NetworkSettings | None:
    """Return the network with the given weights, which were converted from TensorFlow; None without weights."""
    if not arguments.weights:
        return None
    return NetworkSettings(arguments.backbone, weights_path=arguments.weights, **CONVERTED)


def comparators(arguments: argparse.Namespace) -> dict[str, Comparator]:
    available: dict[str, Comparator] = {"calibrated, color and structure": CalibratedComparator()}
    network = network_settings(arguments)
    if network is not None:
        available["paper"] = PaperComparator(network)
        available["product"] = ProductComparator(network)
        available["illumination"] = make_comparator(
            "illumination", arguments.backbone, arguments.weights, network_options=CONVERTED
        )
        available["calibrated"] = CalibratedComparator(network)
    return {name: available[name] for name in arguments.comparators or available}


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure every comparator on the same references."""
    train, test, files = stacked(arguments)
    detector = load_detector(arguments)
    stored = torch.load(result_path(arguments, "references.pt"), weights_only=True)
    if stored["files"] != files:
        msg = "The stored references belong to other test images: run `pose` again."
        raise ValueError(msg)
    pairs = held_out_pairs(detector, train)
    result = {}
    for name, comparator in comparators(arguments).items():
        if comparator.can_calibrate:
            calibrate(detector, comparator, pairs, train)
        start = time.perf_counter()
        pairs_and_alphas = zip(test["image"], stored["reference"], stored["alpha"], strict=True)
        maps = torch.cat(
            [comparator(query[None], reference[None], alpha[None]) for query, reference, alpha in pairs_and_alphas]
        )
        seconds = (time.perf_counter() - start) / len(maps)
        rows = {name: maps}
        if comparator.can_calibrate:
            rows[name] = detector.comparison.surface(maps, stored["points"], stored["alpha"])
            rows[f"{name}, without surface statistics"] = maps
        for row, row_maps in rows.items():
            result[row] = {**accuracy(row_maps, comparator.score(row_maps, stored["alpha"]), test), "seconds": seconds}
    return result


def accuracy(maps: Tensor, scores: Tensor, test: dict[str, Tensor]) -> dict[str, float]:
    scores = scores / scores.max()  # torchmetrics takes values above 1 for logits, whose sigmoids are all near 1
    labels, masks = test["label"], (test["mask"] > 0).int()
    aupro = AUPRO()
    scaled = (maps - maps.min()) / (maps.max() - maps.min())
    # AUPRO sorts all pixels once for each region, which takes minutes for images of 400 px
    coarser = max(1, maps.shape[-1] // 200)
    aupro.update(functional.avg_pool2d(scaled, coarser), functional.max_pool2d(masks.float(), coarser).int())
    return {
        "image_auroc": float(binary_auroc(scores, labels)),
        "pixel_auroc": float(binary_auroc(scaled.flatten(), masks.flatten())),
        "pixel_aupro": float(aupro.compute()),
    }


def show(title: str, result: dict) -> None:
    rows = result if isinstance(next(iter(result.values())), dict) else {"": result}
    table = Table(title=title)
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name)
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4g}" for value in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["fit", "pose", "compare"])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--out", default="results/benchmark")
    parser.add_argument("--queries", default="", help="another data set, whose test images in other light are used")
    parser.add_argument("--scene", default="gaussians", choices=["gaussians", *FIELDS])
    parser.add_argument("--steps", type=int, default=0, help="steps of the fit; 0 for the default")
    parser.add_argument("--gaussians", type=int, default=FitSettings.max_gaussians)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--adam", type=int, default=0, help="number of queries for the paper's refiner")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="file with the backbone's weights")
    parser.add_argument("--comparators", nargs="+", help="names of the comparators to measure (default: all)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    result = {"fit": fit, "pose": pose, "compare": compare}[arguments.what](arguments)
    show(f"{arguments.what}: {arguments.category}, {arguments.size} px", result)
    write_json(result_path(arguments, f"{arguments.what}.json"), result)


if __name__ == "__main__":
    main()
