# SPDX-License-Identifier: Apache-2.0
"""Camera poses of photographs from a fitted scene model, without anomaly detection."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from anomalib_pose.data.masks import read_object_mask
from anomalib_pose.data.posed import query
from anomalib_pose.geometry.checks import check_intrinsics
from anomalib_pose.models.components import PoseMixin, test_time_grad
from anomalib_pose.models.components.checkpoint_checks import MODEL_KEY, read_checkpoint
from anomalib_pose.pose import PoseEstimate
from anomalib_pose.registry import load_model, scene_models

Photograph = str | Path | Tensor


@overload
def estimate_pose(
    model: PoseMixin | str | Path, image: str | Path, intrinsics: Tensor | None = None, foreground: Any = None
) -> PoseEstimate: ...
@overload
def estimate_pose(
    model: PoseMixin | str | Path,
    image: Tensor | Sequence[Photograph],
    intrinsics: Tensor | None = None,
    foreground: Any = None,
) -> PoseEstimate | list[PoseEstimate]: ...
def estimate_pose(
    model: PoseMixin | str | Path,
    image: Photograph | Sequence[Photograph],
    intrinsics: Tensor | None = None,
    foreground: Any = None,
) -> PoseEstimate | list[PoseEstimate]:
    """Estimate the camera pose of one photograph of a fitted object, or of several photographs.

    Photographs are prepared as in all other entry points: undistorted, and resized to the size of the training views.
    The returned camera belongs to the undistorted photograph at its original size. If the pose search fails, the result
    is an estimate with a low confidence.

    Args:
        model: fitted ``SplatPose``, ``OmniposeAD`` or ``PIAD``, or the path to its checkpoint. Each call reads the
            checkpoint again.
        image: file, or RGB (3, H, W) in [0, 1]; or a sequence of these, or a batch (B, 3, H, W). The transparency of a
            file is the mask of the object.
        intrinsics: K (3, 3) in pixels of the photograph, which then has no lens distortion and may have any aspect
            ratio; the center of the first pixel is at (0.5, 0.5). None for the camera of the training views, scaled to
            the size of the photograph.
        foreground: mask of the object, a file or (H, W) in [0, 1]; for several photographs, a sequence of masks. None
            for no mask; an object on white is then segmented if the training views are on white.

    Returns:
        The estimate, with OpenCV camera axes and ``p_world = camera_to_world @ p_camera``; a list of estimates for
        several photographs.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if the model is not a scene model.
        ValueError: if the model is not fitted, the checkpoint belongs to another model, a file cannot be read, sizes
            differ, or ``intrinsics`` is None and the aspect ratio differs from that of the training views.
    """
    fitted = load_fitted(model) if isinstance(model, str | Path) else model
    if not isinstance(fitted, PoseMixin):
        names = ", ".join(scene_models())
        msg = f"Expected a fitted {names} or the path to its checkpoint, got a {type(fitted).__name__}."
        raise TypeError(msg)
    if isinstance(image, str | Path) or (isinstance(image, Tensor) and image.ndim < 4):
        return estimate_photograph(fitted, image, intrinsics, foreground)
    images = list(image)
    masks = [None] * len(images) if foreground is None else list(foreground)
    if len(masks) != len(images):
        msg = f"Expected one mask per photograph, got {len(masks)} masks for {len(images)} photographs."
        raise ValueError(msg)
    return [
        estimate_photograph(fitted, photograph, intrinsics, mask)
        for photograph, mask in zip(images, masks, strict=True)
    ]


def load_fitted(path: str | Path, name: str = "", **settings: Any) -> PoseMixin:
    """Load a fitted scene model from its checkpoint. Only tensors and plain settings are read.

    Args:
        path: checkpoint that anomalib wrote.
        name: class name of the model; empty for the name in the checkpoint.
        settings: arguments of the model that replace those in the checkpoint.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a checkpoint, or the checkpoint of another model or of an unfitted model.
    """
    checkpoint = read_checkpoint(path, name or "a scene model")
    model_name = checkpoint.get(MODEL_KEY, name)
    if model_name not in scene_models() or name not in ("", model_name):
        expected = name or f"one of {', '.join(scene_models())}"
        actual = f"belongs to {model_name}" if model_name else "names no model"
        msg = f"{path} should be a checkpoint of {expected}, but {actual}."
        raise ValueError(msg)
    model = load_model(model_name).load_from_checkpoint(path, map_location="cpu", **settings)
    model.model.estimator.load()
    if not len(model.model.bank):
        msg = f"{path} holds an unfitted {model_name}: give the checkpoint from the end of its training."
        raise ValueError(msg)
    return model.eval()


def estimate_photograph(
    model: PoseMixin, photograph: Photograph, intrinsics: Tensor | None, foreground: Photograph | None
) -> PoseEstimate:
    """Estimate the camera of one photograph.

    Args:
        model: fitted scene model.
        photograph: see ``estimate_pose``.
        intrinsics: see ``estimate_pose``.
        foreground: see ``estimate_pose``.

    Raises:
        ValueError: see ``estimate_pose``.
    """
    detector, query_format = model.model, model.model.query_format
    if query_format is None:
        msg = f"The {type(model).__name__} is not fitted: train it first, or give its checkpoint."
        raise ValueError(msg)
    stored = _read(photograph, foreground)
    if intrinsics is not None:
        check_intrinsics(intrinsics, *stored.size, f"The image {stored.name}")
    prepared = query.prepare_query(stored, query_format, intrinsics)
    device = detector.intrinsics.device
    with test_time_grad():
        mask = None if prepared.foreground is None else prepared.foreground.to(device)
        estimate, _ = detector.estimate(prepared.image.to(device), prepared.K.float().to(device), mask)
    camera = prepared.stored_camera(estimate.camera)
    return replace(estimate, camera=camera.with_pose(detector.world.to_user(camera.camera_to_world)))


def _read(photograph: Photograph, foreground: Photograph | None) -> query.Photograph:
    """Read a photograph and the mask of its object."""
    mask_path = None if foreground is None or isinstance(foreground, Tensor) else Path(foreground)
    if isinstance(photograph, Tensor):
        image = photograph.detach().cpu().float().clone()
        if image.ndim != 3 or len(image) != 3 or not bool(((image >= 0) & (image <= 1)).all()):
            values = f"in [{image.min():g}, {image.max():g}]" if image.numel() else "without values"
            msg = f"An image should be RGB (3, H, W) in [0, 1], got {tuple(image.shape)} {values}."
            raise ValueError(msg)
        stored = query.Photograph(image, mask=None if mask_path is None else read_object_mask(mask_path))
    else:
        stored = query.read_photograph(Path(photograph), mask_path)
    if isinstance(foreground, Tensor):
        stored = replace(stored, mask=foreground.detach().cpu().float().clone())
    if stored.mask is not None and stored.mask.shape != stored.image.shape[-2:]:
        size = tuple(stored.image.shape[-2:])
        msg = f"A mask should have the size of its image, {size}, got {tuple(stored.mask.shape)}."
        raise ValueError(msg)
    return stored
