# SPDX-License-Identifier: Apache-2.0
"""Measure how queries are found that the default search does not find, on an object that ``splat_pose.py fit`` fitted.

    python tools/benchmark/localize.py DATA --category car --size 200 --matcher aliked --matcher-weights FILE --rolls 12

Of some test images whose poses are known it measures share, error and seconds of the default search. With a matcher,
also those of the search whose alignment is sent to the far side of the object, so that features alone can find it, and
of that without features. With ``--rolls``, also those of the same images turned by random angles, with as many turns
tried and with none. With ``--focal-error 0.03``, also those of intrinsics that are off by so much, refined and not.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from splat_pose import kept, load_detector, measure_poses, queries, show, stacked
from torch import Tensor

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

_ORDINARY_STARTS = 3


class Misled:
    """A refiner that leaves the bank's views for the far side of the object, and refines what comes later as it should.

    The bank's views come three or six at once, poses from matches one or two.
    """

    def __init__(self, refiner: Refiner) -> None:
        self.refiner = refiner

    def __call__(self, scene: Scene, query: Query, starts: Tensor) -> RefinementResult:
        """The far side, or the end of the refinement."""
        if len(starts) < _ORDINARY_STARTS:
            return self.refiner(scene, query, starts)
        far = starts[0].clone()
        far[:3, :3] = starts[0, :3, :3] @ torch.tensor([-1.0, 1.0, -1.0]).diag().to(far)
        far[:3, 3] = 2 * scene.center.to(far) - starts[0, :3, 3]
        return RefinementResult(far, float("inf"), converged=False, n_renders=0)


def misled(detector: SceneDetector, matched: FeatureLocalizer | None) -> PoseEstimator:
    """The detector's estimator without anything that could find back by itself."""
    own = detector.estimator
    estimator = PoseEstimator(Misled(own.refiner), _ORDINARY_STARTS, own.retry_below, feature_localizer=matched)
    estimator.typical_residual = own.typical_residual
    return estimator


def turned(found: list[Query], truth: Tensor, seed: int) -> tuple[list[Query], Tensor]:
    """Queries as cameras see them that are rolled by random angles, and those cameras' poses."""
    angles = (2 * math.pi * torch.rand(len(found), generator=torch.Generator().manual_seed(seed))).tolist()
    poses = truth.clone()
    for pose, angle in zip(poses, angles, strict=True):
        pose[:3, :3] = pose[:3, :3] @ roll_matrix(angle)
    return [undo_roll(query, -angle) for query, angle in zip(found, angles, strict=True)], poses


def localize(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every search on the same images."""
    _, test, _ = stacked(arguments)
    detector = load_detector(arguments)
    chosen = torch.linspace(0, len(test["image"]) - 1, min(arguments.count, len(test["image"]))).long()
    found = queries({name: tensor[chosen] for name, tensor in test.items()})
    truth = test["camera_to_world"][chosen]

    def measured(estimator: PoseEstimator, images: list[Query], poses: Tensor) -> dict[str, float]:
        scene, bank = detector.rendered, detector.bank
        return measure_poses(lambda query: estimator(scene, bank, query), images, poses, scene.center)

    result = {"default": measured(detector.estimator, found, truth)}
    matcher = make_matcher(arguments.matcher, arguments.matcher_weights)
    if matcher is not None:
        matcher.load()
        result["misled"] = measured(misled(detector, None), found, truth)
        result[f"misled, {arguments.matcher}"] = measured(misled(detector, FeatureLocalizer(matcher)), found, truth)
    if arguments.rolls > 1:
        images, poses = turned(found, truth, arguments.seed)
        for rolls in (1, arguments.rolls):
            detector.bank.rolls = rolls
            result[f"turned, rolls {rolls}"] = measured(detector.estimator, images, poses)
    if arguments.focal_error:
        wrong = [replace(query, K=scale_focal_lengths(query.K, 1 + arguments.focal_error)) for query in found]
        for refine_focal in (False, True):
            estimator = make_estimator(refine_focal=refine_focal)
            estimator.typical_residual = detector.estimator.typical_residual
            name = f"focal length off by {arguments.focal_error:g}{', refined' if refine_focal else ''}"
            result[name] = measured(estimator, wrong, truth)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--out", default="results/benchmark", help="where the fitted detector is")
    parser.add_argument("--scene", default="gaussians", choices=["gaussians", *FIELDS])
    parser.add_argument("--count", type=int, default=16, help="test images, spread over all")
    parser.add_argument("--matcher", default="")
    parser.add_argument("--matcher-weights", default="")
    parser.add_argument("--rolls", type=int, default=1)
    parser.add_argument("--focal-error", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="of the angles")
    arguments = parser.parse_args()
    arguments.queries = ""
    result = localize(arguments)
    show(f"localize: {arguments.category}, {arguments.size} px", result)
    what = f"localize_{arguments.matcher}.json" if arguments.matcher else "localize.json"
    kept(arguments, what).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
