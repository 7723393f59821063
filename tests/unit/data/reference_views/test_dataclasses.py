# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch

from anomalib_pose.data import ViewBatch, ViewItem


def item(seed: int, **fields) -> ViewItem:
    generator = torch.Generator().manual_seed(seed)
    return ViewItem(
        image=torch.rand(3, 8, 8, generator=generator),
        gt_label=torch.tensor(seed % 2),
        image_path=f"{seed}.png",
        reference_images=torch.rand(2, 3, 8, 8, generator=generator),
        reference_xyz=torch.rand(2, 32, 32, 3, generator=generator),
        box=torch.rand(4, generator=generator),
        shape_id=f"shape {seed}",
        **fields,
    )


def test_collation_stacks_views_boxes_and_names():
    items = [item(0, pair_points=torch.ones(3, 2, 2)), item(1)]
    batch = ViewBatch.collate(items)
    assert type(batch) is ViewBatch
    assert isinstance(batch, ImageBatch)
    for name in ("image", "reference_images", "reference_xyz", "box"):
        assert torch.equal(getattr(batch, name), torch.stack([getattr(one, name) for one in items]))
    assert batch.shape_id == ["shape 0", "shape 1"]
    assert batch.gt_label.tolist() == [False, True]
    assert batch.pair_points is None  # not every item has it
    assert batch.pair_images is None


def test_batches_are_split_into_items_and_convert_to_numpy():
    items = [item(seed) for seed in range(3)]
    again = ViewBatch.collate(items).items
    assert all(type(one) is ViewItem for one in again)
    assert torch.equal(again[2].reference_xyz, items[2].reference_xyz)
    assert [one.shape_id for one in again] == [one.shape_id for one in items]
    arrays = ViewBatch.collate(items).to_numpy()
    assert np.array_equal(arrays.box, np.stack([one.box for one in items]))
    assert np.array_equal(items[1].to_numpy().reference_images, items[1].reference_images)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="use a batch size of 1"):
        ViewBatch.collate([item(0), ViewItem(image=torch.zeros(3, 9, 9))])
