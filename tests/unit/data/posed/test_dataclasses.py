# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch

from anomalib_pose.data import PoseBatch, PoseItem


def _item(seed: int, **fields) -> PoseItem:
    generator = torch.Generator().manual_seed(seed)
    return PoseItem(
        image=torch.rand(3, 4, 5, generator=generator),
        gt_label=torch.tensor(seed % 2),
        image_path=f"{seed}.png",
        camera_to_world=torch.rand(4, 4, generator=generator),
        **fields,
    )


def test_collation_stacks_fields_of_all_items_and_leaves_other_fields_none():
    items = [_item(0, foreground=torch.ones(4, 5)), _item(1)]
    batch = PoseBatch.collate(items)
    assert type(batch) is PoseBatch
    assert isinstance(batch, ImageBatch)
    assert torch.equal(batch.camera_to_world, torch.stack([item.camera_to_world for item in items]))
    assert torch.equal(batch.image, torch.stack([item.image for item in items]))
    assert batch.gt_label.tolist() == [False, True]
    assert batch.image_path == ["0.png", "1.png"]
    assert batch.foreground is None
    assert batch.intrinsics is None
    assert batch.reference is None


def test_fields_missing_in_the_first_item_alone_do_not_matter():
    batch = PoseBatch.collate([_item(0), _item(1, intrinsics=torch.eye(3))])
    assert batch.intrinsics is None


def test_images_of_different_sizes_are_refused_rather_than_resized_without_their_intrinsics():
    other = PoseItem(image=torch.zeros(3, 6, 6))
    with pytest.raises(ValueError, match=r"\(4, 5\), \(6, 6\).*batch size of 1"):
        PoseBatch.collate([_item(0), other])


def test_batches_are_split_into_items_and_convert_to_numpy():
    items = [_item(seed, pose_confidence=torch.tensor(0.25 * seed)) for seed in range(3)]
    batch = PoseBatch.collate(items)
    batch.update(reference=batch.image.flip(-1), estimated_camera_to_world=batch.camera_to_world * 2)
    batch_items = batch.items
    assert all(type(item) is PoseItem for item in batch_items)
    assert torch.equal(batch_items[2].camera_to_world, items[2].camera_to_world)
    assert torch.equal(batch_items[1].reference, items[1].image.flip(-1))
    numpy_batch = batch.to_numpy()
    assert np.array_equal(numpy_batch.camera_to_world, batch.camera_to_world.numpy())
    assert np.array_equal(numpy_batch.pose_confidence, [0, 0.25, 0.5])
    assert np.array_equal(items[0].to_numpy().camera_to_world, items[0].camera_to_world.numpy())


def test_a_stock_batch_becomes_a_pose_batch_field_by_field():
    stock = ImageBatch(image=torch.rand(2, 3, 4, 4), gt_label=torch.tensor([0, 1]))
    batch = PoseBatch(**{field.name: getattr(stock, field.name) for field in dataclasses.fields(stock)})
    assert torch.equal(batch.image, stock.image)
    assert batch.camera_to_world is None
