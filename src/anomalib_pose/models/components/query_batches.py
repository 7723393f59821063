# SPDX-License-Identifier: Apache-2.0
"""Batches of queries from any data loader, prepared in the one format of a fitted detector.

anomalib's own reader ignores transparency, bit depths above 8 and the cameras of the training images, and stretches
images of one batch to one size. The photographs of its batches are therefore read again.
"""

from pathlib import Path
from typing import Any, cast

import torch
from anomalib.data import ImageBatch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.data.batches import convert_batch
from anomalib_pose.data.masks import read_defect_mask
from anomalib_pose.data.posed.dataclasses import PoseBatch, PoseItem
from anomalib_pose.data.posed.dataset import PosedDataset
from anomalib_pose.data.posed.query import Photograph, PreparedQuery, prepare_query, read_photograph
from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.models.components.photograph_files import is_path_batch
from anomalib_pose.models.components.scene_detector import SceneDetector, ScenePrediction


def training_format(trainer: Any, size: tuple[int, int]) -> QueryFormat | None:
    """Return the format of the training images, or None if the training data do not tell it.

    Args:
        trainer: Lightning's trainer during a fit.
        size: width and height of the training images in pixels.
    """
    dataset = getattr(getattr(trainer, "train_dataloader", None), "dataset", None)
    while dataset is not None and not isinstance(dataset, PosedDataset):
        dataset = getattr(dataset, "dataset", None)
    return None if dataset is None else dataset.query_format.resized(*size)


def prepare_batch(batch: Any, query_format: QueryFormat | None) -> Any:
    """Prepare a batch of queries from any loader.

    Args:
        batch: output of a data loader. Batches of this package's datamodules are returned unchanged.
        query_format: format of the fitted detector; None without a fit, the images then stay as they are.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file cannot be read, or an image does not have the aspect ratio of the training images. The
            message names the file.
    """
    if is_path_batch(batch):
        photographs = [read_photograph(path) for path in batch]
        if query_format is None:
            return PoseBatch(image=torch.stack([photograph.image for photograph in photographs]))
        items = [_item(prepare_query(photograph, query_format), photograph.name) for photograph in photographs]
        return PoseBatch.collate_masked(items)
    if not isinstance(batch, ImageBatch) or isinstance(batch, PoseBatch) or query_format is None:
        return convert_batch(batch, PoseBatch)
    prepared = [
        prepare_query(photograph, query_format, gt_mask=gt_mask)
        for photograph, gt_mask in (_stock_photograph(batch, index) for index in range(len(batch.image)))
    ]
    paths = batch.image_path or [None] * len(prepared)
    items = [_item(query, path) for query, path in zip(prepared, paths, strict=True)]
    converted = PoseBatch.collate_masked(items)
    converted.update(gt_label=batch.gt_label, image_path=batch.image_path, mask_path=batch.mask_path)
    return converted


def predict_images(detector: SceneDetector, images: Tensor) -> ScenePrediction:
    """Predict images without files; maps have the size of the images.

    Args:
        detector: fitted detector.
        images: RGB (B, 3, H, W) in [0, 1], with the camera of the training images.

    Raises:
        ValueError: if the images do not have the aspect ratio of the training images.
    """
    query_format = detector.query_format
    if query_format is None:
        return cast("ScenePrediction", detector(images.clone()))
    queries = [prepare_query(Photograph(image.detach().cpu().float()), query_format) for image in images]
    prepared = torch.stack([query.image for query in queries]).to(images)
    prediction = detector(prepared.clone(), torch.stack([query.K for query in queries]).to(images))
    maps = [query.stored_map(values) for query, values in zip(queries, prediction.anomaly_map, strict=True)]
    return cast("ScenePrediction", prediction._replace(anomaly_map=torch.stack(maps)))


def _item(query: PreparedQuery, path: str | None) -> PoseItem:
    return PoseItem(
        image=Image(query.image),
        gt_mask=None if query.gt_mask is None else Mask(query.gt_mask > 0),
        image_path=path,
        intrinsics=query.K.float(),
        foreground=query.foreground,
        stored_size=torch.tensor(query.stored_size),
    )


def _stock_photograph(batch: ImageBatch, index: int) -> tuple[Photograph, Tensor | None]:
    """Return the photograph of a stock batch's image, from its file if there is one, and its mask of the defect."""
    path = None if batch.image_path is None else batch.image_path[index]
    image = batch.image[index].detach().cpu().float().as_subclass(Tensor)
    photograph = read_photograph(Path(path)) if path and Path(path).is_file() else Photograph(image)
    if batch.gt_mask is None:
        return photograph, None
    mask_path = None if batch.mask_path is None else batch.mask_path[index]
    if mask_path and Path(mask_path).is_file():
        mask = read_defect_mask(Path(mask_path))
    else:
        mask = batch.gt_mask[index].detach().cpu().float().as_subclass(Tensor)
    height, width = photograph.image.shape[-2:]
    if mask.shape[-2:] != (height, width):
        mask = F.interpolate(mask.reshape(1, 1, *mask.shape[-2:]), (height, width), mode="nearest-exact")
    return photograph, mask.reshape(height, width)
