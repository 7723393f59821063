# SPDX-License-Identifier: Apache-2.0
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import PosedFolder
from anomalib_pose.geometry import view_sphere
from anomalib_pose.models.components.view_collection import ViewCollection


def _collect(folder, opaque):
    """Collect cut-outs, of which some are opaque everywhere, as a fit does."""
    frames = []
    for index, pose in enumerate(view_sphere(9, 3.0).double()):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 4), dtype=np.uint8)
        pixels[..., 3] = 255 if index in opaque else np.arange(16) // 8 * 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        matrix = (pose * torch.tensor([1.0, -1, -1, 1])).tolist()
        frames.append({"file_path": f"{index}.png", "transform_matrix": matrix, "fl_x": 20.0})
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    datamodule = PosedFolder(folder, num_workers=0, train_batch_size=3, holdout_every=9)
    datamodule.setup()
    collection = ViewCollection()
    for batch in datamodule.train_dataloader():
        collection.add(batch)
    return collection


@pytest.mark.parametrize(("opaque", "used"), [((), 8), ((3,), 7), ((2, 5), 6), (range(9), 8)])
def test_views_without_mask_among_views_with_masks_are_left_out_and_reported(tmp_path, caplog, opaque, used):
    with caplog.at_level(logging.WARNING):
        images, cameras, foreground = _collect(tmp_path, opaque).stack(torch.device("cpu"))
    assert len(images) == len(cameras.camera_to_world) == used
    assert foreground is None if len(opaque) == 9 else len(foreground) == used
    messages = [record.getMessage() for record in caplog.records if "no mask" in record.getMessage()]
    assert len(messages) == (used < 8)
    assert all(f"{len(opaque)} of 8" in message and f"{opaque[0]}.png" in message for message in messages)


def test_many_views_without_mask_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"3 of 8 images in .* no mask of the object: .*\.png, .*\.png, .*\.png"):
        _collect(tmp_path, (2, 4, 6)).stack(torch.device("cpu"))
