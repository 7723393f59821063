# SPDX-License-Identifier: Apache-2.0
"""Losses agree with loops over single queries."""

import math

import pytest
import torch
from torch import nn

from anomalib_pose.models.looking3d.encoder import Encoder, Projector, cell_index
from anomalib_pose.models.looking3d.losses import Alignment, contrast, task_loss
from anomalib_pose.models.looking3d.matching import foreground_weights


def test_contrast_agrees_with_a_loop():
    g = torch.Generator().manual_seed(0)
    queries, keys = (nn.functional.normalize(torch.randn(7, 5, generator=g), dim=1) for _ in range(2))
    total = 0.0
    for i in range(7):
        similarities = [math.exp(float(queries[i] @ keys[j]) / 0.1) for j in range(7)]
        total -= math.log(similarities[i] / sum(similarities))
    assert float(contrast(queries, keys)) == pytest.approx(total / 7, rel=1e-5)


def overlap(one, other):
    """Compute the GIoU of two boxes (cx, cy, w, h) from areas."""
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (one, other)]
    (a, b, c, d), (e, f, g, h) = corners
    inside = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    union = (c - a) * (d - b) + (g - e) * (h - f) - inside
    hull = (max(c, g) - min(a, e)) * (max(d, h) - min(b, f))
    return inside / union - (hull - union) / hull


def test_task_loss_agrees_with_a_loop():
    """The third query is normal; the fourth is anomalous without a true box."""
    logit = torch.tensor([0.3, -1.2, 0.7, 2.0])
    box = torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.2, 0.2]])
    truth = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.7, 0.8, 0.2, 0.1], [0.0] * 4, [0.0] * 4])
    label = torch.tensor([1, 1, 0, 1])
    expected = 0.0
    for i in range(4):
        p = 1 / (1 + math.exp(-float(logit[i])))
        expected -= math.log(p if label[i] else 1 - p)
        if i < 2:
            expected += 5 * sum(abs(float(x - y)) for x, y in zip(box[i], truth[i], strict=True))
            expected += 2 * (1 - overlap(box[i].tolist(), truth[i].tolist()))
    assert float(task_loss(logit, box, label, truth)) == pytest.approx(expected / 4, rel=1e-5)


def test_boxes_of_normal_queries_have_zero_gradient():
    box = torch.rand(3, 4, requires_grad=True)
    logit = torch.zeros(3, requires_grad=True)
    task_loss(logit, box, torch.zeros(3), torch.zeros(3, 4)).backward()
    assert torch.equal(box.grad, torch.zeros(3, 4))
    torch.testing.assert_close(logit.grad, torch.full((3,), 0.5 / 3))


@pytest.fixture(scope="module")
def networks() -> tuple[Encoder, Projector]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval(), Projector().eval()


def object_images(count: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 256, 256)
    images[..., 60:200, 40:220] = 0.8 * torch.rand(count, 3, 140, 180, generator=g)
    return images


def test_alignment_agrees_with_a_loop(networks):
    """Two objects: a pair of views, and a pair with the query, where points correspond to the most similar cells."""
    encoder, projector = networks
    alignment = Alignment(encoder, projector).eval()
    with torch.no_grad():
        for mean in alignment.projector_ema.parameters():
            mean.mul_(1.1)
    query, pair = object_images(2, 1), object_images(4, 2).unflatten(0, (2, 2))
    points = torch.randint(-3, 258, (2, 5, 2, 2), generator=torch.Generator().manual_seed(3))
    loss = alignment(encoder, projector, query, pair, points)

    def describe(image, encode, project):
        normal = (image[None] - 0.5) / 0.5
        weights = foreground_weights(normal)[0].flatten()
        with torch.no_grad():
            return (project(encode(normal))[0].flatten(1) * weights).T

    def cell(point):
        row, column = (min(max(int(x), 0), 255) // 8 for x in point)
        return row * 32 + column

    averages = (alignment.encoder_ema, alignment.projector_ema)
    queries, keys = [], []
    first, second = describe(pair[0, 0], encoder, projector), describe(pair[0, 1], *averages)
    for point in points[0]:
        queries.append(first[cell(point[0])])
        keys.append(second[cell(point[1])])
    first, second = describe(query[1], encoder, projector), describe(pair[1, 0], *averages)
    for point in points[1]:
        key = second[cell(point[0])]
        queries.append(max(first, key=lambda one, key=key: float(one @ key)))
        keys.append(key)
    torch.testing.assert_close(loss, contrast(torch.stack(queries), torch.stack(keys)), rtol=1e-4, atol=1e-4)
    assert torch.equal(cell_index(points[0, :, 0]), torch.tensor([cell(point) for point in points[0, :, 0]]))


def test_moving_averages_update_parameters_but_not_statistics(networks):
    encoder, projector = networks
    alignment = Alignment(encoder, projector, momentum=0.75)
    other = (Encoder(), Projector())
    before = {name: value.clone() for name, value in alignment.encoder_ema.state_dict().items()}
    alignment.update(*other)
    parameters = {name for name, _ in encoder.named_parameters()}
    for name, value in alignment.encoder_ema.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * other[0].state_dict()[name] if name in parameters else before[name]
        torch.testing.assert_close(value, expected)
    assert not any(parameter.requires_grad for parameter in alignment.parameters())


def test_gradients_reach_encoder_and_projector_but_no_average(networks):
    encoder, projector = Encoder(), Projector()
    alignment = Alignment(encoder, projector)
    points = torch.randint(60, 200, (2, 4, 2, 2), generator=torch.Generator().manual_seed(3))
    images = object_images(6, 4)
    alignment(encoder, projector, images[:2], images[2:].unflatten(0, (2, 2)), points).backward()
    for part in (encoder, projector):
        assert all(
            parameter.grad is not None and parameter.grad.abs().sum() > 0
            for parameter in part.parameters()
            if parameter.ndim > 1
        )
    assert all(parameter.grad is None for parameter in alignment.parameters())
    assert not torch.equal(alignment.encoder_ema.backbone.bn1.running_mean, torch.zeros(64))
