# SPDX-License-Identifier: Apache-2.0
"""Boxes in images."""

import torch

from anomalib_pose.models.looking3d.box_drawing import draw_boxes

GREEN, RED = torch.tensor([0, 128 / 255, 0]), torch.tensor([1.0, 0, 0])


def test_boxes_are_drawn_at_their_coordinates():
    images = torch.full((3, 3, 100, 200), 0.25)
    predicted = torch.tensor([0.5, 0.5, 0.4, 0.6]).expand(3, 4)  # columns 60 to 140, rows 20 to 80
    truth = torch.tensor([[0.25, 0.5, 0.2, 0.2], [0, 0, 0, 0], [0, 0, 0, 0]])  # columns 30 to 70, rows 40 to 60
    pictures = draw_boxes(images, predicted, torch.tensor([True, False, True]), truth)
    assert torch.equal(pictures[1], images[1])
    for row, column in ((20, 100), (80, 100), (50, 60), (50, 140)):
        torch.testing.assert_close(pictures[0, :, row, column], RED)
        torch.testing.assert_close(pictures[2, :, row, column], RED)
    for row, column in ((40, 50), (60, 50), (50, 30)):
        torch.testing.assert_close(pictures[0, :, row, column], GREEN, atol=1e-2, rtol=0)
    changed = (pictures[2] - images[2]).abs().gt(0.01).any(0).nonzero()
    assert changed.min(0).values.tolist() == [20, 60]
    assert changed.max(0).values.tolist() == [80, 140]
