# SPDX-License-Identifier: Apache-2.0
"""Comparison of queries with rendered references: anomaly maps and image scores."""

import logging
import math
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.lighting.shading import relight_query, relight_reference
from anomalib_pose.compare.patch_memory import PatchMemory
from anomalib_pose.compare.protocol import Comparator
from anomalib_pose.compare.reference import Reference, stack_references
from anomalib_pose.compare.surface_statistics import SurfaceStatistics
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.compare.view_support import attenuate_unsupported
from anomalib_pose.progress import stage, track
from anomalib_pose.render.reflectance import Decomposition
from anomalib_pose.scene import Scene

logger = logging.getLogger(__name__)

_MIN_VIEWS_TO_MIX = 4  # from fewer held-out views, the reliability of the patch memory cannot be estimated
_SYNTHETIC_DEFECTS = 40  # least number of defective copies that the mixing weights are learned from
_OBJECT_ALPHA = 0.5


RunStage = Callable[[str, Callable[[], None]], object]
"""Runs one stage of a calibration, given its title and its work."""


def run_now(title: str, work: Callable[[], None]) -> None:
    """Run a stage of a calibration, with a progress bar.

    Args:
        title: name of the stage.
        work: changes the state of the comparison.
    """
    with stage(title):
        work()


class ReferenceComparison(nn.Module):
    """Compares queries with references of the defect-free object.

    A comparison has five steps:

    1. With ``relight``, the reference is relit to match the query (``relight_reference``).
    2. The comparator computes an anomaly map from query and reference.
    3. The surface statistics divide the map by the residual that normal views have at the same surface point.
    4. The comparator computes the image score from the map. For the score alone, the map is attenuated where no
       training view supports the reference. The returned map is not attenuated: attenuated maps localize defects less
       well.
    5. Score and map of the patch memory are mixed in where the pose has a low confidence. They are mixed in for all
       queries if the memory detects synthetic defects more reliably than steps 1 to 4.

    Surface statistics and patch memory need a comparator with ``can_calibrate``; the patch memory also needs the
    comparator's network.

    Args:
        comparator: computes an anomaly map and a score from query and reference.
        surface_views: training views that the surface statistics are collected from; 0 for no surface statistics.
        surface_strength: exponent of the surface statistics; see ``SurfaceStatistics``.
        memory_patches: number of patches in the patch memory; 0 for no patch memory.
        relight: relight each reference to match its query.
        low_confidence: pose confidence below which the patch memory is mixed in.
        seed: seed of the patch memory's first patch and of the synthetic defects.

    Raises:
        ValueError: if a number of views or patches is negative.
    """

    def __init__(
        self,
        comparator: Comparator,
        *,
        surface_views: int = 120,
        surface_strength: float = 1.0,
        memory_patches: int = 0,
        relight: bool = False,
        low_confidence: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(surface_views, memory_patches) < 0:
            msg = f"surface_views and memory_patches should not be negative, got {surface_views} and {memory_patches}."
            raise ValueError(msg)
        self.comparator = comparator
        self.surface = SurfaceStatistics(strength=surface_strength)
        self.surface_views = surface_views
        self.memory = PatchMemory(memory_patches, seed) if memory_patches and self.memory_network is not None else None
        self.relight = relight
        self.low_confidence = low_confidence
        self.seed = seed

    @property
    def memory_network(self) -> FeatureExtractor | None:
        """Network of the patch memory: the comparator's network if it has ``can_calibrate``, else None."""
        return self.comparator.extractor if self.comparator.can_calibrate else None

    @property
    def decompose(self) -> Decomposition | None:
        """Decomposition of images into their reflectance, for references; None if references need no reflectance.

        A relit reference needs none: the comparator computes its reflectance from the relit image, whose colors include
        the color of the query's light.
        """
        return None if self.relight else self.comparator.reflectance

    @torch.no_grad()
    def calibrate(
        self,
        images: Float[Tensor, "c 3 h w"],
        references: Reference,
        held_out: tuple[int, ...],
        render_view: Callable[[int], Reference],
        scene: Scene,
        run_stage: RunStage = run_now,
    ) -> None:
        """Learn from normal views how much a normal query differs from its reference.

        The comparator learns from the held-out views, and the surface statistics from all training views. The patch
        memory learns from the training views that are not held out. Without held-out views, only the patch memory
        learns.

        Args:
            images: all C training views, RGB in [0, 1], over white where the foreground is known.
            references: references of the held-out views, or of all views if none is held out.
            held_out: indices of the views that the scene was not fitted to.
            render_view: renders the reference of one training view, given its index, at its true camera.
            scene: fitted object.
            run_stage: runs one of these stages, given its title; an interrupted fit skips the finished ones.
        """
        queries = images[list(held_out)] if held_out else images
        if held_out:
            learned = (queries, references.rgb, references.alpha, references.reflectance)
            run_stage("Calibrate the comparison", lambda: self.comparator.fit_calibration(*learned))
            if self.comparator.can_calibrate and self.surface_views:
                run_stage("Collect surface statistics", lambda: self.calibrate_surface(images, render_view, scene))
        memory, network = self.memory, self.memory_network
        if memory is not None and network is not None:
            run_stage(
                "Fill the patch memory",
                lambda: self._calibrate_memory(memory, network, images, queries, references, held_out),
            )

    @torch.no_grad()
    def calibrate_surface(
        self, images: Float[Tensor, "c 3 h w"], render_view: Callable[[int], Reference], scene: Scene
    ) -> None:
        """Collect the residuals of training views on the object's surface, also of views that the scene was fitted to.

        Args:
            images: see ``calibrate``.
            render_view: see ``calibrate``.
            scene: see ``calibrate``.
        """
        count = min(self.surface_views, len(images))
        if not count:
            return
        selected_views = torch.linspace(0, len(images) - 1, count).round().long().tolist()

        def residuals() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for index in track(selected_views, "Compare training views"):
                reference = stack_references([render_view(index)])
                if bool((reference.alpha > _OBJECT_ALPHA).any()):
                    yield self.residual_map(images[index][None], reference)[0], reference.points[0], reference.alpha[0]

        views = residuals()
        first = next(views, None)
        if first is None:
            logger.warning(
                "The fitted scene is transparent in all %d views, so the surface statistics stay empty. "
                "Fit with more steps.", count,
            )  # fmt: skip
            return
        self.surface.fit(chain([first], views), scene.center, scene.extent)

    def _calibrate_memory(
        self,
        memory: PatchMemory,
        network: FeatureExtractor,
        images: Tensor,
        queries: Tensor,
        references: Reference,
        held_out: tuple[int, ...],
    ) -> None:
        """Fill the patch memory, bring it to the scale of the comparison, and learn its mixing weights."""
        with stage("Compare held-out views"):
            compared = self.compare(queries, references)
        memory.fit_and_calibrate(network, images, held_out, compared)
        if len(held_out) < _MIN_VIEWS_TO_MIX:
            return
        rounds = range(self.seed, self.seed + math.ceil(_SYNTHETIC_DEFECTS / len(queries)))
        defective = [add_synthetic_defects(queries, seed) for seed in track(rounds, "Paint synthetic defects")]
        comparisons = [self.compare(copies, references) for copies in track(defective, "Compare synthetic defects")]
        maps, scores = map(torch.cat, zip(*comparisons, strict=True))
        memory.learn_mixing_weights(network, (queries, *compared), (torch.cat(defective), maps, scores))

    @torch.no_grad()
    def forward(
        self, query: Float[Tensor, "b 3 h w"], reference: Reference, pose_confidence: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Compute anomaly maps and image scores.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the B queries.
            pose_confidence: confidence of the cameras that the references were rendered from, in [0, 1].
        """
        compared = self.compare(query, reference)
        if self.memory is None or self.memory_network is None or not self.memory.fitted:
            return compared
        memory_weight = (1 - pose_confidence / max(self.low_confidence, 1e-6)).clamp(min=0)
        return self.memory.mix(self.memory_network, query, compared, memory_weight)

    @torch.no_grad()
    def compare(
        self, query: Float[Tensor, "b 3 h w"], reference: Reference
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
        """Compute anomaly maps and image scores without the patch memory.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the B queries.
        """
        anomaly_map = self.surface(self.residual_map(query, reference), reference.points, reference.alpha)
        scored_map = anomaly_map
        if reference.support_residual is not None:
            scored_map = attenuate_unsupported(anomaly_map, reference.support_residual)
        return anomaly_map, self.comparator.score(scored_map, reference.alpha)

    def residual_map(self, query: Float[Tensor, "b 3 h w"], reference: Reference) -> Float[Tensor, "b h w"]:
        """Compute the comparator's anomaly maps; with ``relight`` the references are relit first.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the B queries.
        """
        rgb = reference.rgb
        if self.relight:
            rgb = relight_reference(query, rgb, reference.alpha, reference.points)
        return self.comparator(query, rgb, reference.alpha, reference.reflectance)

    def relight_query(self, query: Float[Tensor, "3 h w"], reference: Reference) -> Float[Tensor, "3 h w"]:
        """Relight one query to match its reference, so that its own light does not bias the pose refinement.

        Args:
            query: RGB in [0, 1].
            reference: reference of one camera.
        """
        batch = stack_references([reference])
        return relight_query(query[None], batch.rgb, batch.alpha, batch.points)[0]
