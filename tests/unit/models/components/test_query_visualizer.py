# SPDX-License-Identifier: Apache-2.0
"""Pictures show the file of a query, or its prepared image where the map fits this image alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.models.components.query_visualizer import QueryVisualizer


@pytest.mark.parametrize(
    ("size", "mode", "distortion", "is_prepared"),
    [
        ((64, 64), "RGB", (), False),
        ((65, 64), "RGB", (0.0,), False),
        ((64, 48), "RGB", (), True),
        ((64, 64), "I;16", (), True),
        ((64, 64), "RGB", (0.1,), True),
    ],
)
def test_the_picture_lies_under_the_map(tmp_path, size, mode, distortion, is_prepared):
    path = tmp_path / "photo.png"
    Image.new(mode, size).save(path)  # the file is black, the prepared image is white
    query_format = SimpleNamespace(cameras=[SimpleNamespace(distortion=distortion)])
    model = SimpleNamespace(model=SimpleNamespace(query_format=query_format))
    batch = PoseBatch(image=torch.ones(1, 3, 64, 64), anomaly_map=torch.zeros(1, 1, 64, 64), image_path=[str(path)])
    visualizer = QueryVisualizer(fields=["image"], text_config={"enable": False}, output_dir=tmp_path / "images")
    visualizer.on_predict_batch_end(SimpleNamespace(datamodule=None), model, None, batch, 0)
    (picture,) = (tmp_path / "images").rglob("*.png")
    pixels = np.asarray(Image.open(picture))  # the first panel is the query
    assert (pixels[len(pixels) // 2, pixels.shape[1] // 8] == (255 if is_prepared else 0)).all()
