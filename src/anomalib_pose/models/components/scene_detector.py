# SPDX-License-Identifier: Apache-2.0
"""The pipeline of every scene model in plain PyTorch: fit, bank, pose, reference, comparison, score."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.compare import (
    CalibratedComparator,
    Comparator,
    FeatureExtractor,
    SurfaceStatistics,
    attenuate_unsupported,
    relight_query,
    relight_reference,
)
from anomalib_pose.compare.patch_memory import PatchMemory
from anomalib_pose.compare.reference import Reference, stacked
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.geometry import Camera, resize_intrinsics
from anomalib_pose.pose import PoseEstimate, PoseEstimator, Query, ViewBank
from anomalib_pose.pose.agreement import OBJECT_ALPHA
from anomalib_pose.pose.held_out import localize_held_out_views
from anomalib_pose.render.reflectance import reflectance_of_color
from anomalib_pose.scene import (
    CorrectedScene,
    NearbyViews,
    Scene,
    is_reflective,
    sort_by_contribution,
    white_foreground,
)
from anomalib_pose.scene.view_coverage import has_sparse_views, warn_about_sparse_views

logger = logging.getLogger(__name__)

_FEWEST_TO_WEIGH = 4
_DAMAGED = 40

FitScene = Callable[[nn.Module, Tensor, Camera, Tensor | None, tuple[int, ...]], float]
"""Fits a scene to images, cameras, masks but for some held-out views, and returns their PSNR."""


class ScenePrediction(NamedTuple):
    """What a scene model says of a batch of queries; the names are those of the batch's fields.

    Args:
        pred_score: image scores (B,).
        anomaly_map: pixel scores (B, 1, H, W).
        reference: rendered defect-free counterparts (B, 3, H, W).
        estimated_camera_to_world: estimated poses (B, 4, 4).
        pose_confidence: confidences of the poses (B,), in [0, 1].
    """

    pred_score: Tensor
    anomaly_map: Tensor
    reference: Tensor
    estimated_camera_to_world: Tensor
    pose_confidence: Tensor


class SceneDetector(nn.Module):
    """Fits an object, finds the camera of a query, renders the reference there and compares.

    Args:
        scene: the object; empty until ``fit``.
        estimator: finds the camera of a query.
        comparator: turns query and reference into an anomaly map and a score.
        bank_spacing: angle between the rendered views that the pose search starts from, degrees.
        holdout_every: every n-th training view is kept from the fitting, to measure PSNR and to calibrate with.
        rolls: turns about the optical axis that the pose search starts from; see ``ViewBank``.
        surface_views: training views whose anomaly maps say what to expect of each place of the surface, where the
            comparator is one that is calibrated; 0 for none.
        surface_strength: see ``SurfaceStatistics``.
        memory_patches: patches of good views that queries whose camera is doubtful are held against, and all queries
            as far as that tells artificial damage of held-out views better than the comparison does, where the
            comparator is one that is calibrated and has a network; 0 for none.
        relight: find the camera again in the query with its own light removed, and compare it with renderings in that
            light.
        nearby_views: training views nearest to a camera, by what they show beyond their renderings references are
            corrected; 0 for none.
        doubt_unconfirmed: what none of those views confirms of a reference counts less: for scenes that show things in
            mid-air. Where views are few it always does.
        seed: of the memory's first patch and of the artificial damage.
    """

    intrinsics: Tensor
    image_size: Tensor
    white_background: Tensor
    psnr: Tensor
    calibration_views: Tensor

    def __init__(
        self,
        scene: nn.Module,
        estimator: PoseEstimator,
        comparator: Comparator,
        *,
        bank_spacing: float = 8.0,
        holdout_every: int = 10,
        rolls: int = 1,
        surface_views: int = 120,
        surface_strength: float = 1.0,
        memory_patches: int = 0,
        relight: bool = False,
        nearby_views: int = 0,
        doubt_unconfirmed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if holdout_every < 2:
            msg = f"holdout_every should be 2 or more, so that views are left to fit, got {holdout_every}."
            raise ValueError(msg)
        counts = (surface_views, memory_patches, nearby_views)
        if min(counts) < 0:
            msg = f"surface_views, memory_patches and nearby_views should not be negative, got {counts}."
            raise ValueError(msg)
        self.scene = scene
        self.bank = ViewBank(bank_spacing, rolls)
        self.estimator = estimator
        self.comparator = comparator
        self.surface = SurfaceStatistics(strength=surface_strength)
        self.surface_views = surface_views
        self.relight = relight
        self.nearby = NearbyViews(nearby_views) if nearby_views else None
        self.doubt_unconfirmed = doubt_unconfirmed
        self.memory = PatchMemory(memory_patches, seed) if memory_patches and self._extractor is not None else None
        self.holdout_every = holdout_every
        self.seed = seed
        self.register_buffer("intrinsics", torch.eye(3))
        self.register_buffer("image_size", torch.zeros(2, dtype=torch.long))
        self.register_buffer("white_background", torch.tensor(data=False))
        self.register_buffer("psnr", torch.tensor(float("nan")))
        self.register_buffer("calibration_views", torch.zeros(0, 3, 1, 1, dtype=torch.uint8))

    @property
    def _extractor(self) -> FeatureExtractor | None:
        """The network of a comparator that is calibrated, if it has one."""
        return self.comparator.extractor if isinstance(self.comparator, CalibratedComparator) else None

    @property
    def rendered(self) -> Scene:
        """The object; empty until ``fit``."""
        return cast("Scene", self.scene)

    @property
    def reference(self) -> Scene:
        """The object as queries are compared with it, corrected by photographs from nearby if there are any."""
        return CorrectedScene(self.rendered, self.nearby) if self.nearby is not None else self.rendered

    def fit(
        self,
        images: Float[Tensor, "c 3 h w"],
        cameras: Camera,
        foreground: Float[Tensor, "c h w"] | None,
        fit_scene: FitScene,
    ) -> None:
        """Fit the scene, render the bank, and calibrate confidence and comparison on held-out views.

        Args:
            images: RGB in [0, 1].
            cameras: C cameras.
            foreground: masks of the object, or None to take them from a white background where there is one.
            fit_scene: how the scene is fitted.
        """
        images, foreground = self._over_white(images, foreground)
        apart = has_sparse_views(cameras)
        if apart:
            paths = {"attenuates_unsupported": self.nearby is not None, "has_patch_memory": self.memory is not None}
            warn_about_sparse_views(cameras, masked=foreground is not None, **paths)
        count = len(images)
        held_out = (
            tuple(range(self.holdout_every // 2, count, self.holdout_every)) if count > self.holdout_every else ()
        )
        psnr = fit_scene(self.scene, images, cameras, foreground, held_out)
        sort_by_contribution(self.rendered, cameras)
        self.psnr = torch.tensor(psnr, device=images.device)
        self.intrinsics = cameras.median_intrinsics
        self.image_size = torch.tensor([cameras.height, cameras.width], device=images.device)
        self.bank.build(self.rendered, cameras)
        if self.nearby is not None:
            fitted = [index for index in range(count) if index not in held_out]
            keep = self.doubt_unconfirmed or apart
            self.nearby.store_residuals(self.rendered, images[fitted], cameras[fitted], keep_photographs=keep)
        self._calibrate(images, cameras, foreground, held_out)

    def _over_white(self, images: Tensor, foreground: Tensor | None) -> tuple[Tensor, Tensor | None]:
        found = white_foreground(images)
        self.white_background = torch.tensor(found is not None, device=images.device)
        if found is not None:
            return images, found if foreground is None else foreground
        if foreground is None:
            return images, None
        return images * foreground[:, None] + 1 - foreground[:, None], foreground

    def _calibrate(self, images: Tensor, cameras: Camera, foreground: Tensor | None, held_out: tuple[int, ...]) -> None:
        """Treat held-out views as queries: what differs there differs in spite of the object being good.

        The views are kept, so that a checkpoint is all that an exported detector needs to be calibrated.
        """
        chosen = list(held_out) or list(range(len(images)))
        photographs, found = images[chosen], [cameras[index] for index in chosen]
        self.calibration_views = (images[list(held_out)] * 255).round().to(torch.uint8)
        if held_out:
            masks = [None] * len(chosen) if foreground is None else foreground[chosen]
            queries = [Query(*parts) for parts in zip(photographs, cameras.K[chosen], masks, strict=True)]
            found = localize_held_out_views(self.estimator, self.rendered, self.bank, queries, cameras[chosen])
        else:
            logger.warning("Too few views (%d) to hold some out: the comparison is not calibrated.", len(images))
        seen = stacked(map(self.render_reference, found))
        if held_out:
            self.comparator.fit_calibration(photographs, seen.rgb, seen.alpha, seen.reflected)
            if isinstance(self.comparator, CalibratedComparator):
                self.calibrate_surface(images, cameras)
        if self.memory is None or self._extractor is None:
            return
        compared = self._compare(photographs, seen)
        self.memory.fit_beside(self._extractor, images, held_out, compared)
        if len(held_out) >= _FEWEST_TO_WEIGH:
            seeds = range(self.seed, self.seed + math.ceil(_DAMAGED / len(photographs)))
            rounds = [add_synthetic_defects(photographs, seed) for seed in seeds]
            maps, scores = map(torch.cat, zip(*(self._compare(each, seen) for each in rounds), strict=True))
            self.memory.weigh(self._extractor, (photographs, *compared), (torch.cat(rounds), maps, scores))

    @torch.no_grad()
    def calibrate_surface(self, images: Float[Tensor, "c 3 h w"], cameras: Camera) -> None:
        """Collect on the surface how training views, fitted ones too, differ from their renderings.

        Args:
            images: RGB in [0, 1], over white where the foreground is known.
            cameras: of the images.
        """
        count = min(self.surface_views, len(images))
        if not count:
            return
        chosen = torch.linspace(0, len(images) - 1, count).round().long().tolist()

        def collected() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for index in chosen:
                seen = stacked([self.render_reference(cameras[index])])
                if bool((seen.alpha > OBJECT_ALPHA).any()):
                    yield self._map(images[index][None], seen)[0], seen.points[0], seen.alpha[0]

        views = collected()
        first = next(views, None)
        if first is None:
            logger.warning("The scene is transparent in all of %d views: it takes more steps to fit.", count)
            return
        self.surface.fit(chain([first], views), self.rendered.center, self.rendered.extent)

    @torch.no_grad()
    def render_reference(self, camera: Camera) -> Reference:
        """Render the defect-free object over white.

        Args:
            camera: one camera.
        """
        white = torch.ones(3, device=camera.K.device)
        output = self.reference.render(camera, white)
        doubt = torch.zeros_like(output.alpha) if self.nearby is None else self.nearby.support_residual(output, camera)
        rgb = output.rgb.permute(2, 0, 1).clamp(0, 1)
        return Reference(rgb, output.alpha, camera.unproject(output.depth), doubt, self._reflected(camera, white))

    def _reflected(self, camera: Camera, background: Tensor) -> Tensor | None:
        """What the object reflects (3, H, W), if the scene knows and the comparison asks for it.

        Where renderings are lit like the query, their reflectance is taken from them: it holds the lamp's color.
        """
        scene, decompose = self.rendered, self.comparator.reflectance
        if decompose is None or self.relight or not is_reflective(scene):
            return None
        behind = reflectance_of_color(background, decompose)
        return scene.render_reflectance(camera, behind).rgb.permute(2, 0, 1).clamp(0, 1)

    def _query(self, image: Tensor, intrinsics: Tensor | None, foreground: Tensor | None) -> Query:
        height, width = image.shape[-2:]
        if intrinsics is None:
            trained_height, trained_width = self.image_size.tolist()
            intrinsics = resize_intrinsics(self.intrinsics, trained_width, trained_height, width, height)
        if foreground is None and bool(self.white_background):
            mask = white_foreground(image[None])
            foreground = None if mask is None else mask[0]
        elif foreground is not None and not bool(self.white_background):
            image = image * foreground + 1 - foreground
        return Query(image, intrinsics.to(image), foreground)

    def estimate(
        self, image: Float[Tensor, "3 h w"], intrinsics: Tensor | None = None, foreground: Tensor | None = None
    ) -> tuple[PoseEstimate, Query]:
        """Camera of one query, and the query as it was compared: over white where the foreground is known.

        Args:
            image: RGB (3, H, W) in [0, 1].
            intrinsics: K (3, 3) of this image, or None for the training views' scaled to its size.
            foreground: mask of the object (H, W), or None.
        """
        query = self._query(image, intrinsics, foreground)
        estimate = self.estimator(self.rendered, self.bank, query, self._unlit if self.relight else None)
        return estimate, query

    def _unlit(self, query: Query, camera: Camera) -> Query:
        """A query without its own light, which pulls cameras to the side, if it was taken by a camera."""
        shown = stacked([self.render_reference(camera)])
        return replace(query, image=relight_query(query.image[None], shown.rgb, shown.alpha, shown.points)[0])

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        intrinsics: Float[Tensor, "b 3 3"] | None = None,
        foreground: Float[Tensor, "b h w"] | None = None,
    ) -> ScenePrediction:
        """Poses, references, anomaly maps and scores of queries.

        Args:
            images: RGB in [0, 1].
            intrinsics: K of every image, or None for the training views'.
            foreground: masks of the object, or None.
        """
        estimates, queries, references = [], [], []
        for index, image in enumerate(images):
            K = None if intrinsics is None else intrinsics[index]  # noqa: N806
            mask = None if foreground is None else foreground[index]
            estimate, query = self.estimate(image, K, mask)
            seen = self.render_reference(estimate.camera)
            estimates.append(estimate)
            queries.append(query.image)
            references.append(seen.over(query.image, self.comparator.reflectance) if query.foreground is None else seen)
        photographs, shown = torch.stack(queries), stacked(references)
        compared = self._compare(photographs, shown)
        confidence = images.new_tensor([estimate.confidence for estimate in estimates])
        anomaly_map, score = self._remembered(photographs, *compared, confidence)
        return ScenePrediction(
            score.detach(),
            anomaly_map.detach()[:, None],
            shown.rgb.detach(),
            torch.stack([estimate.camera.camera_to_world for estimate in estimates]).detach(),
            confidence,
        )

    @torch.no_grad()
    def _compare(self, queries: Tensor, seen: Reference) -> tuple[Tensor, Tensor]:
        """Anomaly maps and scores by comparison with the renderings.

        What no photograph confirms of a rendering counts less for the scores alone: it is where maps show it, and they
        tell the place of a defect better as they are.
        """
        anomaly_map = self.surface(self._map(queries, seen), seen.points, seen.alpha)
        counted = anomaly_map
        if self.nearby is not None and self.nearby.has_photographs:
            counted = attenuate_unsupported(anomaly_map, seen.support_residual)
        return anomaly_map, self.comparator.score(counted, seen.alpha)

    def _map(self, queries: Tensor, seen: Reference) -> Tensor:
        """Differences from renderings, in the light of the queries if they are to be."""
        shown = relight_reference(queries, seen.rgb, seen.alpha, seen.points) if self.relight else seen.rgb
        return self.comparator(queries, shown, seen.alpha, seen.reflected)

    @torch.no_grad()
    def _remembered(
        self, queries: Tensor, anomaly_map: Tensor, score: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Maps and scores in which the memory has the share that is missing to a pose that needs no retry, or more."""
        if self.memory is None or self._extractor is None or not self.memory.fitted:
            return anomaly_map, score
        doubt = (1 - confidence / max(self.estimator.retry_below, 1e-6)).clamp(min=0)
        return self.memory.mixed(self._extractor, queries, (anomaly_map, score), doubt)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how many views were held out, and of which size."""
        resize_buffers(self, ("calibration_views",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
