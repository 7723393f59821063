# SPDX-License-Identifier: Apache-2.0
"""The pipeline of every scene model in plain PyTorch: scene, view bank, pose search, comparison."""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.compare.query_content import has_content
from anomalib_pose.compare.reference import Reference, render_reference, stack_references
from anomalib_pose.compare.reference_comparison import ReferenceComparison
from anomalib_pose.data.batches import known_mask
from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.geometry import Camera, resize_intrinsics
from anomalib_pose.models.components.fit_resume import FitCheckpoint
from anomalib_pose.models.components.pose_cache import PoseCache
from anomalib_pose.models.components.query_cameras import QueryCameras
from anomalib_pose.models.components.scene_fit import FitScene, fit_detector
from anomalib_pose.models.components.white_background import query_over_white
from anomalib_pose.models.components.world_frame import WorldFrame
from anomalib_pose.pose import PoseEstimate, PoseEstimator, Query, ViewBank
from anomalib_pose.render.threads import small_operations
from anomalib_pose.scene import CorrectedScene, NearbyViews, Scene


class ScenePrediction(NamedTuple):
    """Predictions of a scene model for a batch of queries; the names are those of the batch's fields.

    Args:
        pred_score: image scores (B,).
        anomaly_map: pixel scores (B, 1, H, W).
        reference: rendered defect-free counterparts (B, 3, H, W).
        estimated_camera_to_world: estimated poses (B, 4, 4) in the user's world, float64.
        pose_confidence: confidences of the poses (B,), in [0, 1].
    """

    pred_score: Tensor
    anomaly_map: Tensor
    reference: Tensor
    estimated_camera_to_world: Tensor
    pose_confidence: Tensor


class SceneDetector(nn.Module):
    """Fits an object, estimates the camera of each query, renders the reference there and compares it with the query.

    Args:
        scene: the object; empty until ``fit``.
        estimator: estimates the camera of a query.
        comparison: computes anomaly map and score from query and reference.
        bank_spacing: angle in degrees between the rendered views of the bank.
        rolls: number of in-plane rotations in the bank; see ``ViewBank``.
        holdout_every: every n-th training view is held out from the fit, for PSNR and calibration.
        nearby_views: number of nearest training views whose residual images correct the rendered reference; 0 for none.
        check_support: attenuate scores where none of the nearest training views supports the reference, for scenes that
            render fog in mid-air. Where the training views are sparse, this is always on. Needs ``nearby_views``.
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
        comparison: ReferenceComparison,
        *,
        bank_spacing: float = 8.0,
        rolls: int = 1,
        holdout_every: int = 10,
        nearby_views: int = 0,
        check_support: bool = False,
    ) -> None:
        super().__init__()
        if holdout_every < 2:
            msg = f"holdout_every should be 2 or more, so that views are left to fit, got {holdout_every}."
            raise ValueError(msg)
        if nearby_views < 0:
            msg = f"nearby_views should not be negative, got {nearby_views}."
            raise ValueError(msg)
        self.scene = scene
        self.bank = ViewBank(bank_spacing, rolls)
        self.estimator = estimator
        self.comparison = comparison
        self.nearby = NearbyViews(nearby_views) if nearby_views else None
        self.check_support = check_support
        self.holdout_every = holdout_every
        self.pose_cache: PoseCache | None = None
        self.query_cameras = QueryCameras()
        self.world = WorldFrame()
        self.register_buffer("intrinsics", torch.eye(3))
        self.register_buffer("image_size", torch.zeros(2, dtype=torch.long))
        self.register_buffer("white_background", torch.tensor(data=False))
        self.register_buffer("psnr", torch.tensor(float("nan")))
        self.register_buffer("calibration_views", torch.zeros(0, 3, 1, 1, dtype=torch.uint8))

    @property
    def rendered(self) -> Scene:
        """The scene without corrections by training views; empty until ``fit``."""
        return cast("Scene", self.scene)

    @property
    def reference(self) -> Scene:
        """The scene that references are rendered from, corrected by the nearest training views if there are any."""
        return CorrectedScene(self.rendered, self.nearby) if self.nearby is not None else self.rendered

    @property
    def query_format(self) -> QueryFormat | None:
        """Format of prepared queries; None before the fit. Checkpoints of earlier versions have one pinhole camera."""
        if not len(self.bank):
            return None
        height, width = self.image_size.tolist()
        white = bool(self.white_background)
        stored = self.query_cameras.format((width, height), white_background=white)
        return stored or QueryFormat.of_camera(self.intrinsics, (width, height), white_background=white)

    @small_operations()
    def fit(
        self,
        images: Float[Tensor, "c 3 h w"],
        cameras: Camera,
        foreground: Float[Tensor, "c h w"] | None,
        fit_scene: FitScene,
        checkpoint: FitCheckpoint | None = None,
    ) -> None:
        """Fit the scene, render the bank, and calibrate pose confidence and comparison on held-out views.

        Args:
            images: RGB in [0, 1].
            cameras: C cameras in the user's world, which may have its origin anywhere and any unit; float64 where
                positions are large numbers.
            foreground: masks of the object; None to derive them from a white background where there is one.
            fit_scene: fits the scene.
            checkpoint: file from which an interrupted fit continues, or None.
        """
        fit_detector(self, images, cameras, foreground, fit_scene, checkpoint)

    @torch.no_grad()
    def render_reference(self, camera: Camera) -> Reference:
        """Render the defect-free object over white.

        Args:
            camera: one camera.
        """
        return render_reference(self.rendered, self.nearby, camera, self.comparison.decompose)

    @small_operations()
    def estimate(
        self, image: Float[Tensor, "3 h w"], intrinsics: Tensor | None = None, foreground: Tensor | None = None
    ) -> tuple[PoseEstimate, Query]:
        """Estimate the camera of one query; return it with the query over white where the foreground is known.

        The camera is in the detector's world; ``world.to_user`` converts its pose.

        An image without content is tiny, constant, or has NaN or infinite pixels. Its estimate is any camera with
        confidence 0, and its query is white.

        Args:
            image: RGB (3, H, W) in [0, 1].
            intrinsics: K (3, 3) of this image; None for the K of the training views, scaled to the image's size.
            foreground: mask of the object (H, W), or None.
        """
        if intrinsics is None:
            training_height, training_width = self.image_size.tolist()
            height, width = image.shape[-2:]
            intrinsics = resize_intrinsics(self.intrinsics, training_width, training_height, width, height)
        if not bool(has_content(image[None])):
            query = Query(torch.ones_like(image), intrinsics.to(image), torch.zeros_like(image[0]))
            camera = query.camera_at(self.bank.poses[0].to(image))
            return PoseEstimate(camera, residual=1.0, confidence=0.0, converged=False, n_renders=0), query
        image, foreground = query_over_white(image, foreground, white_background=bool(self.white_background))
        query = Query(image, intrinsics.to(image), foreground)
        relight = self._relight_query if self.comparison.relight else None

        def search() -> PoseEstimate:
            return self.estimator(self.rendered, self.bank, query, relight)

        return search() if self.pose_cache is None else self.pose_cache.estimate(query, search), query

    def _relight_query(self, query: Query, camera: Camera) -> Query:
        """Relight a query to match its reference at a camera."""
        return replace(query, image=self.comparison.relight_query(query.image, self.render_reference(camera)))

    @small_operations()
    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        intrinsics: Float[Tensor, "b 3 3"] | None = None,
        foreground: Float[Tensor, "b h w"] | None = None,
    ) -> ScenePrediction:
        """Estimate poses, render references, and compute anomaly maps and scores.

        Args:
            images: RGB in [0, 1].
            intrinsics: K of each image; None for the K of the training views.
            foreground: masks of the object, -1 for an image without a mask; or None.
        """
        estimates, queries, references = [], [], []
        for index, image in enumerate(images):
            K = None if intrinsics is None else intrinsics[index]  # noqa: N806
            estimate, query = self.estimate(image, K, known_mask(foreground, index))
            reference = self.render_reference(estimate.camera)
            if query.foreground is None:
                reference = reference.over_background(query.image, self.comparison.decompose)
            estimates.append(estimate)
            queries.append(query.image)
            references.append(reference)
        stacked_references = stack_references(references)
        confidence = images.new_tensor([estimate.confidence for estimate in estimates])
        anomaly_map, score = self.comparison(torch.stack(queries), stacked_references, confidence)
        poses = self.world.to_user(torch.stack([estimate.camera.camera_to_world for estimate in estimates]))
        return ScenePrediction(
            score.detach(), anomaly_map.detach()[:, None], stacked_references.rgb.detach(), poses.detach(), confidence
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the calibration views to those of the checkpoint."""
        resize_buffers(self, ("calibration_views",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
