# SPDX-License-Identifier: Apache-2.0
"""A fitted object used only to find the cameras of photographs."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

from anomalib.utils.serialization import anomalib_safe_globals
from rich.progress import track
from torch import Tensor

from anomalib_pose.data.files import write_json
from anomalib_pose.data.images import (
    SUFFIXES,
    check_mask_size,
    image_files,
    image_size,
    over_white,
    read_image,
    read_mask,
)
from anomalib_pose.geometry import resize_image_mask_K, resize_intrinsics
from anomalib_pose.models.components import PoseMixin, test_time_grad
from anomalib_pose.models.components.pose_mixin import MODEL_KEY
from anomalib_pose.pose import PoseEstimate
from anomalib_pose.registry import load_model, scene_models
from anomalib_pose.weights import read_weights

logger = logging.getLogger(__name__)

Photograph = str | Path | Tensor

_DOUBTFUL = 0.5


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
    """Find the camera of a photograph of a fitted object, or of several photographs.

    Photographs larger than the training views are searched at their size, which the confidence was calibrated at; the
    camera that is returned is that of the photograph as it was given. A pose that was not found is an estimate of low
    confidence.

    Args:
        model: fitted ``SplatPose``, ``OmniposeAD`` or ``PIAD``, or the path to a checkpoint of one, which is read anew
            at each call.
        image: file, or RGB (3, H, W) in [0, 1]; or a sequence of these, or a batch (B, 3, H, W). A file's transparency
            serves as mask of the object.
        intrinsics: K (3, 3) in pixels of the photograph, whose first pixel's center is at (0.5, 0.5); None for the
            training views', scaled to the photograph's size.
        foreground: mask of the object, a file or (H, W) in [0, 1]; or one for each of several photographs. None where
            there is none: an object on white is cut out anyway if it was trained on white.

    Returns:
        The estimate, with OpenCV camera axes and ``p_world = camera_to_world @ p_camera``; a list of them for several
        photographs.

    Raises:
        FileNotFoundError: if a file is not there.
        TypeError: if the model is no scene model.
        ValueError: if the model is not fitted, the checkpoint is another model's, a file cannot be read, sizes differ,
            or the intrinsics are unknown because the photograph has another aspect than the training views.
    """
    fitted = load_fitted(model) if isinstance(model, str | Path) else model
    if not isinstance(fitted, PoseMixin):
        names = ", ".join(scene_models())
        msg = f"Expected a fitted {names} or the path to its checkpoint, got a {type(fitted).__name__}."
        raise TypeError(msg)
    if isinstance(image, str | Path) or (isinstance(image, Tensor) and image.ndim < 4):
        return _estimate(fitted, image, intrinsics, foreground)
    images = list(image)
    masks = [None] * len(images) if foreground is None else list(foreground)
    if len(masks) != len(images):
        msg = f"Expected a mask for each of the {len(images)} photographs, got {len(masks)}."
        raise ValueError(msg)
    return [_estimate(fitted, one, intrinsics, mask) for one, mask in zip(images, masks, strict=True)]


def load_fitted(path: str | Path, name: str = "", **settings: Any) -> PoseMixin:
    """A fitted scene model from its checkpoint, of which tensors and plain settings alone are read.

    Args:
        path: checkpoint that anomalib wrote.
        name: of the model's class; empty for what the checkpoint says.
        settings: arguments of the model that replace the checkpoint's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no checkpoint, that of another model, or of a model that was not fitted.
    """
    with anomalib_safe_globals():
        checkpoint = read_weights(path, "a checkpoint of a scene model")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        msg = f"{path} should be a checkpoint that `anomalib train` wrote, but has no state_dict."
        raise ValueError(msg)
    found = checkpoint.get(MODEL_KEY, name)
    if found not in scene_models() or name not in ("", found):
        wanted = name or f"one of {', '.join(scene_models())}"
        msg = f"{path} should be a checkpoint of {wanted}, but says that it is of {found or 'none of them'}."
        raise ValueError(msg)
    try:
        model = load_model(found).load_from_checkpoint(path, map_location="cpu", **settings)
    except RuntimeError as error:  # what load_state_dict raises; it lists hundreds of names
        reason = str(error).splitlines()[-1].strip()
        msg = f"{path} does not fit this version of {found}, fit the object again: {reason}"
        raise ValueError(msg) from error
    model.model.estimator.load()
    if not len(model.model.bank):
        msg = f"{path} holds a {found} that was not fitted: give the checkpoint that its training ended with."
        raise ValueError(msg)
    return model.eval()


def _estimate(
    model: PoseMixin, photograph: Photograph, intrinsics: Tensor | None, foreground: Photograph | None
) -> PoseEstimate:
    detector = model.model
    image, mask = _read(photograph, foreground)
    height, width = image.shape[-2:]
    trained_height, trained_width = detector.image_size.tolist()
    if not len(detector.bank):
        msg = f"The {type(model).__name__} is not fitted: train it first, or give its checkpoint."
        raise ValueError(msg)
    if intrinsics is None:
        _check_aspect((width, height), (trained_width, trained_height), photograph)
        intrinsics = resize_intrinsics(detector.intrinsics.cpu(), trained_width, trained_height, width, height)
    elif intrinsics.shape != (3, 3) or not bool((intrinsics.diagonal() > 0).all()):
        msg = f"The intrinsics K should be (3, 3) with focal lengths above 0, got {intrinsics.tolist()}."
        raise ValueError(msg)
    if foreground is not None and mask is not None and bool(detector.white_background):
        image = over_white(image, mask)
    scale = min(1.0, max(trained_width, trained_height) / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image, mask, small = resize_image_mask_K(image, mask, intrinsics.to(image), *size)
    device = detector.intrinsics.device
    with test_time_grad():
        estimate, _ = detector.estimate(image.to(device), small.to(device), None if mask is None else mask.to(device))
    return replace(estimate, camera=estimate.camera.resized(width, height))


def _read(photograph: Photograph, foreground: Photograph | None) -> tuple[Tensor, Tensor | None]:
    """RGB (3, H, W) and mask (H, W), on the CPU."""
    if isinstance(photograph, Tensor):
        image, alpha = photograph.detach().cpu().float().clone(), None
        if image.ndim != 3 or len(image) != 3 or not bool(((image >= 0) & (image <= 1)).all()):
            msg = f"An image should be RGB (3, H, W) in [0, 1], got {tuple(image.shape)} with other values or channels."
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
        mask = read_mask(Path(foreground))
    if mask.shape != image.shape[-2:]:
        msg = f"A mask should have the size of its image, {tuple(image.shape[-2:])}, got {tuple(mask.shape)}."
        raise ValueError(msg)
    return image, mask if alpha is None else mask * alpha


def _check_aspect(size: tuple[int, int], trained: tuple[int, int], photograph: Photograph) -> None:
    # Rounding of a small size changes its aspect by up to a pixel, which is no other camera.
    if abs(size[0] * trained[1] / (size[1] * trained[0]) - 1) > 1 / min(trained):
        name = "The image" if isinstance(photograph, Tensor) else str(photograph)
        msg = (
            f"{name} is {size[0]} x {size[1]}, which has not the aspect of the training views ({trained[0]} x "
            f"{trained[1]}), so their intrinsics say nothing of it: give its own intrinsics."
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class LocalizedFile:
    """What is written of one photograph.

    Args:
        file: its path.
        camera_to_world: estimated pose (4, 4), OpenCV axes.
        K: intrinsics (3, 3) in pixels.
        width: in pixels.
        height: in pixels.
        confidence: in [0, 1].
        residual: see ``PoseEstimate``.
        seconds: that the search took, reading included.
    """

    file: str
    camera_to_world: list[list[float]]
    K: list[list[float]]
    width: int
    height: int
    confidence: float
    residual: float
    seconds: float


def localize(
    model: PoseMixin,
    data: str | Path,
    output: str | Path,
    masks: str | Path | None = None,
    intrinsics: Tensor | None = None,
    *,
    progress: bool = True,
) -> list[LocalizedFile]:
    """Find the cameras of all photographs of a folder, and write them as JSON; what was found is logged in one line.

    Args:
        model: fitted.
        data: photograph, or folder with photographs directly in it.
        output: file to write; it is there whole or not at all.
        masks: folder with a mask of every photograph's object, white on black, of the photograph's name but ``.png``;
            None if there are none.
        intrinsics: K (3, 3) of all photographs; None for the training views'.
        progress: show a bar.

    Raises:
        FileNotFoundError: if there is no photograph, or a mask is missing.
        ValueError: if a file cannot be read; see ``estimate_pose``.
    """
    pairs = _photographs(Path(data), None if masks is None else Path(masks))
    found = list(_localized(model, track(pairs, "Localizing", disable=not progress), intrinsics))
    content = {
        "model": type(model).__name__,
        "convention": "OpenCV axes; p_world = camera_to_world @ p_camera; (0.5, 0.5) is the first pixel's center",
        "images": [asdict(one) for one in found],
    }
    write_json(Path(output), content)
    _log(model, found, output)
    return found


def _log(model: PoseMixin, found: Sequence[LocalizedFile], output: str | Path) -> None:
    doubtful = sum(one.confidence < _DOUBTFUL for one in found)
    advice = ""
    if doubtful and model.model.estimator.feature_localizer is None:
        advice = " To look for them by features too, give a matcher and the file of its weights."
    if doubtful and model.model.bank.rolls == 1:
        advice += " If the camera was turned about its optical axis, set rolls to 12."
    logger.info(
        "Localized %d photographs in %.1f s, %d of them doubtful (confidence below %g): %s.%s",
        len(found), sum(one.seconds for one in found), doubtful, _DOUBTFUL, output, advice,
    )  # fmt: skip


def _localized(
    model: PoseMixin, pairs: Iterable[tuple[Path, Path | None]], intrinsics: Tensor | None
) -> Iterator[LocalizedFile]:
    for path, mask in pairs:
        start = time.perf_counter()
        estimate = _estimate(model, path, intrinsics, mask)
        camera = estimate.camera
        yield LocalizedFile(
            str(path),
            camera.camera_to_world.tolist(),
            camera.K.tolist(),
            camera.width,
            camera.height,
            estimate.confidence,
            estimate.residual,
            time.perf_counter() - start,
        )


def _photographs(data: Path, masks: Path | None) -> list[tuple[Path, Path | None]]:
    """Photographs with their masks; all exist and look like images, so that a long run does not end halfway."""
    files = image_files(data) if data.is_dir() else [data]
    if not files or not files[0].is_file():
        msg = f"There are no photographs at {data}: expected a file, or a folder of {', '.join(SUFFIXES)}."
        raise FileNotFoundError(msg)
    if masks is None:
        for path in files:
            image_size(path)
        return [(path, None) for path in files]
    pairs = [(path, masks / f"{path.stem}.png") for path in files]
    missing = [(path, mask) for path, mask in pairs if not mask.is_file()]
    if missing:
        msg = (
            f"{masks} should have a mask of every photograph: {len(missing)} of {len(pairs)} are missing, the first "
            f"of them that of {missing[0][0]} at {missing[0][1]}."
        )
        raise FileNotFoundError(msg)
    for path, mask in pairs:
        check_mask_size(mask, path)
    return [*pairs]
