# SPDX-License-Identifier: Apache-2.0
"""Camera poses of photographs from a fitted scene model, without anomaly detection."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from anomalib_pose.data.images import (
    over_white,
    read_image,
)
from anomalib_pose.data.masks import check_mask_size, read_object_mask
from anomalib_pose.geometry import resize_image_mask_K, resize_intrinsics
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

    Photographs larger than the training views are resized to the size of the training views, for which the confidence
    is calibrated. The returned camera belongs to the photograph at its original size. If the pose search fails, the
    result is an estimate with a low confidence.

    Args:
        model: fitted ``SplatPose``, ``OmniposeAD`` or ``PIAD``, or the path to its checkpoint. Each call reads the
            checkpoint again.
        image: file, or RGB (3, H, W) in [0, 1]; or a sequence of these, or a batch (B, 3, H, W). The transparency of a
            file is the mask of the object.
        intrinsics: K (3, 3) in pixels of the photograph; the center of the first pixel is at (0.5, 0.5). None for the
            intrinsics of the training views, scaled to the size of the photograph.
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
    detector = model.model
    image, mask = _read(photograph, foreground)
    height, width = image.shape[-2:]
    training_height, training_width = detector.image_size.tolist()
    if not len(detector.bank):
        msg = f"The {type(model).__name__} is not fitted: train it first, or give its checkpoint."
        raise ValueError(msg)
    if intrinsics is None:
        _check_aspect((width, height), (training_width, training_height), photograph)
        intrinsics = resize_intrinsics(detector.intrinsics.cpu(), training_width, training_height, width, height)
    elif intrinsics.shape != (3, 3) or not bool((intrinsics.diagonal() > 0).all()):
        msg = f"The intrinsics K should be (3, 3) with focal lengths above 0, got {intrinsics.tolist()}."
        raise ValueError(msg)
    if foreground is not None and mask is not None and bool(detector.white_background):
        image = over_white(image, mask)
    scale = min(1.0, max(training_width, training_height) / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image, mask, scaled_intrinsics = resize_image_mask_K(image, mask, intrinsics.to(image), *size)
    device = detector.intrinsics.device
    with test_time_grad():
        mask = None if mask is None else mask.to(device)
        estimate, _ = detector.estimate(image.to(device), scaled_intrinsics.to(device), mask)
    return replace(estimate, camera=estimate.camera.resized(width, height))


def _read(photograph: Photograph, foreground: Photograph | None) -> tuple[Tensor, Tensor | None]:
    """Return RGB (3, H, W) and the mask (H, W) or None, on the CPU."""
    if isinstance(photograph, Tensor):
        image, alpha = photograph.detach().cpu().float().clone(), None
        if image.ndim != 3 or len(image) != 3 or not bool(((image >= 0) & (image <= 1)).all()):
            values = f"in [{image.min():g}, {image.max():g}]" if image.numel() else "without values"
            msg = f"An image should be RGB (3, H, W) in [0, 1], got {tuple(image.shape)} {values}."
            raise ValueError(msg)
    else:
        image, alpha = read_image(Path(photograph))
    if foreground is None:
        return image, alpha
    if isinstance(foreground, Tensor):
        mask = foreground.detach().cpu().float().clone()
    else:
        if not isinstance(photograph, Tensor):
            check_mask_size(Path(foreground), Path(photograph))
        mask = read_object_mask(Path(foreground))
    if mask.shape != image.shape[-2:]:
        msg = f"A mask should have the size of its image, {tuple(image.shape[-2:])}, got {tuple(mask.shape)}."
        raise ValueError(msg)
    return image, mask if alpha is None else mask * alpha


def _check_aspect(size: tuple[int, int], training_size: tuple[int, int], photograph: Photograph) -> None:
    # Rounding of a small size changes the aspect ratio by up to one pixel; the camera is still the same.
    if abs(size[0] * training_size[1] / (size[1] * training_size[0]) - 1) > 1 / min(training_size):
        name = "The image" if isinstance(photograph, Tensor) else str(photograph)
        msg = (
            f"{name} is {size[0]} x {size[1]}, but the training views are {training_size[0]} x {training_size[1]}: "
            "their intrinsics do not apply to another aspect ratio. Give the intrinsics of the photograph."
        )
        raise ValueError(msg)
