# SPDX-License-Identifier: Apache-2.0
"""Measure the pose search on difficult queries, on an object that ``splat_pose.py fit`` fitted.

    python tools/benchmark/localize.py DATA --category car --size 200 --matcher aliked --matcher-weights FILE --rolls 12

The test images have known poses. On a subset of them the script measures success rate, error and seconds of the default
search. Options add further rows:

* ``--matcher``: a search whose alignment ends at the far side of the object, with and without feature matching. Only
  feature matching can succeed;
* ``--rolls``: the same images, rotated in the image plane by random angles. The search tries one in-plane
  rotation and this number of in-plane rotations;
* ``--focal-error 0.03``: intrinsics with a focal length that is wrong by this fraction. The search runs with and
  without refinement of the focal length.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from splat_pose import load_detector, measure_poses, queries, result_path, show, stacked
from torch import Tensor

from anomalib_pose.data.files import write_json
from anomalib_pose.geometry import scale_focal_lengths
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.models.omnipose_ad.torch_model import FIELDS
from anomalib_pose.pose import (
    FeatureLocalizer,
    PoseEstimator,
    Query,
    RefinementResult,
    Refiner,
    make_estimator,
    make_matcher,
)
from anomalib_pose.pose.roll import roll_matrix, undo_roll
from anomalib_pose.scene import Scene

_INITIAL_POSES = 3


class FarSideRefiner:
    """A refiner that moves initial poses from the bank to the far side of the object, and refines all other poses.

    The number of poses distinguishes both: the bank gives three or six initial poses at once, feature matching one or
    two.
    """

    def __init__(self, refiner: Refiner) -> None:
        self.refiner = refiner

    def __call__(self, scene: Scene, query: Query, initial_poses: Tensor) -> RefinementResult:
        """Return the pose on the far side, or the refined pose."""
        if len(initial_poses) < _INITIAL_POSES:
            return self.refiner(scene, query, initial_poses)
        far = initial_poses[0].clone()
        far[:3, :3] = initial_poses[0, :3, :3] @ torch.tensor([-1.0, 1.0, -1.0]).diag().to(far)
        far[:3, 3] = 2 * scene.center.to(far) - initial_poses[0, :3, 3]
        return RefinementResult(far, float("inf"), converged=False, n_renders=0)


def make_far_side_estimator(detector: SceneDetector, feature_localizer: FeatureLocalizer | None) -> PoseEstimator:
    """Return the detector's estimator with an alignment that fails, so that only feature matching can succeed."""
    default = detector.estimator
    estimator = PoseEstimator(
        FarSideRefiner(default.refiner), _INITIAL_POSES, default.retry_below, feature_localizer=feature_localizer
    )
    estimator.typical_residual = default.typical_residual
    return estimator


def roll_queries(test_queries: list[Query], truth: Tensor, seed: int) -> tuple[list[Query], Tensor]:
    """Rotate queries in the image plane by random angles; return them and the poses (n, 4, 4) of their cameras."""
    angles = (2 * math.pi * torch.rand(len(test_queries), generator=torch.Generator().manual_seed(seed))).tolist()
    poses = truth.clone()
    for pose, angle in zip(poses, angles, strict=True):
        pose[:3, :3] = pose[:3, :3] @ roll_matrix(angle)
    return [undo_roll(query, -angle) for query, angle in zip(test_queries, angles, strict=True)], poses


def localize(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure all searches on the same images."""
    _, test, _ = stacked(arguments)
    detector = load_detector(arguments)
    subset = torch.linspace(0, len(test["image"]) - 1, min(arguments.count, len(test["image"]))).long()
    test_queries = queries({name: tensor[subset] for name, tensor in test.items()})
    truth = test["camera_to_world"][subset]

    def measure(estimator: PoseEstimator, images: list[Query], poses: Tensor) -> dict[str, float]:
        scene, bank = detector.rendered, detector.bank
        return measure_poses(lambda query: estimator(scene, bank, query), images, poses, scene.center)

    result = {"default": measure(detector.estimator, test_queries, truth)}
    matcher = make_matcher(arguments.matcher, arguments.matcher_weights)
    if matcher is not None:
        matcher.load()
        for label, localizer in (("", None), (f", {arguments.matcher}", FeatureLocalizer(matcher))):
            estimator = make_far_side_estimator(detector, localizer)
            result[f"alignment fails{label}"] = measure(estimator, test_queries, truth)
    if arguments.rolls > 1:
        images, poses = roll_queries(test_queries, truth, arguments.seed)
        for rolls in (1, arguments.rolls):
            detector.bank.rolls = rolls
            result[f"rolled queries, rolls {rolls}"] = measure(detector.estimator, images, poses)
    if arguments.focal_error:
        scaled_queries = [
            replace(query, K=scale_focal_lengths(query.K, 1 + arguments.focal_error)) for query in test_queries
        ]
        for refine_focal in (False, True):
            estimator = make_estimator(refine_focal=refine_focal)
            estimator.typical_residual = detector.estimator.typical_residual
            name = f"focal length off by {arguments.focal_error:g}{', refined' if refine_focal else ''}"
            result[name] = measure(estimator, scaled_queries, truth)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--out", default="results/benchmark", help="folder of the fitted detector")
    parser.add_argument("--scene", default="gaussians", choices=["gaussians", *FIELDS])
    parser.add_argument("--count", type=int, default=16, help="number of test images, evenly spaced")
    parser.add_argument("--matcher", default="")
    parser.add_argument("--matcher-weights", default="")
    parser.add_argument("--rolls", type=int, default=1)
    parser.add_argument("--focal-error", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="seed of the angles")
    arguments = parser.parse_args()
    arguments.queries = ""
    result = localize(arguments)
    show(f"localize: {arguments.category}, {arguments.size} px", result)
    file_name = f"localize_{arguments.matcher}.json" if arguments.matcher else "localize.json"
    write_json(result_path(arguments, file_name), result)


if __name__ == "__main__":
    main()
