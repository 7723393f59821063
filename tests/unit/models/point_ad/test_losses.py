# SPDX-License-Identifier: Apache-2.0
"""Losses agree with their definitions as loops over views, pixels and points."""

import math

import pytest
import torch

from anomalib_pose.models.point_ad.losses import CloudTargets, HybridLoss, focal, hybrid_loss
from anomalib_pose.models.point_ad.scorer import ClipFeatures

OBJECTS, VIEWS, SIDE, SIZE, CELLS, WIDTH = 2, 3, 3, 6, 8, 5


def sample(seed: int = 0) -> tuple[ClipFeatures, torch.Tensor, CloudTargets]:
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)

    valid = torch.rand(OBJECTS, CELLS, generator=g) < 0.7
    masks = torch.rand(OBJECTS, VIEWS, SIZE, SIZE, generator=g) < 0.2
    masks[0, 1] = False
    targets = CloudTargets(
        labels=torch.tensor([1, 0]),
        view_masks=masks,
        points=torch.rand(OBJECTS, CELLS, generator=g) < 0.4,
        valid=valid,
        pixels=torch.randint(0, SIZE, (OBJECTS, VIEWS, CELLS, 2), generator=g),
        visible=(torch.rand(OBJECTS, VIEWS, CELLS, generator=g) < 0.5) & valid[:, None],
    )
    features = ClipFeatures(unit(OBJECTS, VIEWS, WIDTH), unit(OBJECTS, VIEWS, SIDE**2, WIDTH))
    return features, 3 * torch.randn(WIDTH, generator=g, dtype=torch.float64), targets


def enlarged(patches: list[list[float]], row: int, column: int) -> float:
    """Interpolate patches at a pixel's center, bilinear with a repeated border."""
    position = [min(max((at + 0.5) * SIDE / SIZE - 0.5, 0), SIDE - 1) for at in (row, column)]
    low = [int(at) for at in position]
    high = [min(at + 1, SIDE - 1) for at in low]
    y, x = (at - start for at, start in zip(position, low, strict=True))
    top = (1 - x) * patches[low[0]][low[1]] + x * patches[low[0]][high[1]]
    bottom = (1 - x) * patches[high[0]][low[1]] + x * patches[high[0]][high[1]]
    return (1 - y) * top + y * bottom


def dice_of(pairs: list[tuple[float, float]]) -> float:
    overlap = sum(p * t for p, t in pairs)
    return 1 - (2 * overlap + 1) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_hand(features: ClipFeatures, direction: torch.Tensor, targets: CloudTargets, paper: bool) -> list[float]:
    """Compute all four terms by loops."""

    def probability(feature: torch.Tensor) -> float:
        """Softmax over the logits of two texts that differ by the direction."""
        return math.exp(float(feature @ direction)) / (1 + math.exp(float(feature @ direction)))

    maps, focals, dices, view_losses = {}, [], [], []
    for b in range(OBJECTS):
        for v in range(VIEWS):
            patches = [[probability(features.patches[b, v, SIDE * r + c]) for c in range(SIDE)] for r in range(SIDE)]
            maps[b, v] = [[enlarged(patches, r, c) for c in range(SIZE)] for r in range(SIZE)]
            mask = targets.view_masks[b, v].tolist()
            pairs = [(maps[b, v][r][c], float(mask[r][c])) for r in range(SIZE) for c in range(SIZE)]
            for p, t in pairs:
                right = (1 - 1e-5) * (p if t else 1 - p) + 1e-5 * (1 - p if t else p) + 1e-5
                focals.append(-((1 - right) ** 2) * math.log(right))
            dices.append(dice_of(pairs) + dice_of([(1 - p, 1 - t) for p, t in pairs]))
            p = probability(features.cls[b, v])
            view_losses.append(-math.log(p if any(map(any, mask)) else 1 - p))
    point_losses, object_losses = [], []
    for b in range(OBJECTS):
        abnormal, normal = [], []
        for n in range(CELLS):
            views = [v for v in range(VIEWS) if targets.visible[b, v, n]]
            values = [maps[b, v][int(targets.pixels[b, v, n, 0])][int(targets.pixels[b, v, n, 1])] for v in views]
            defective, counts = float(targets.points[b, n]), paper or bool(targets.valid[b, n])
            abnormal.append((mean(values) if views else 0.0, defective * counts))
            normal.append((mean([1 - value for value in values]) if views else 0.0, (1 - defective) * counts))
        point_losses.append(dice_of(abnormal) + dice_of(normal))
        rows = [(b + k * OBJECTS) if paper else (b * VIEWS + k) for k in range(VIEWS)]
        logit = mean([float(features.cls[row // VIEWS, row % VIEWS] @ direction) for row in rows])
        object_losses.append(math.log(1 + math.exp(-logit if targets.labels[b] else logit)))
    return [mean(focals) + mean(dices), mean(view_losses), mean(point_losses), mean(object_losses)]


@pytest.mark.parametrize("paper", [False, True], ids=["corrected", "published"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_term_agrees_with_its_definition(paper, seed):
    features, direction, targets = sample(seed)
    loss = hybrid_loss(features, direction, targets, paper=paper)
    expected = by_hand(features, direction, targets, paper)
    torch.testing.assert_close(torch.stack(list(loss)), torch.tensor(expected, dtype=torch.float64))
    assert loss.total.item() == pytest.approx(sum(expected))
    assert HybridLoss._fields == ("views_local", "views_global", "points_local", "points_global")


@pytest.mark.parametrize("paper", [False, True], ids=["corrected", "published"])
def test_gradients_reach_the_direction(paper):
    features, direction, targets = sample()
    direction.requires_grad_()
    torch.autograd.gradcheck(lambda d: tuple(hybrid_loss(features, d, targets, paper=paper)), direction, atol=1e-7)


def test_only_the_published_loss_counts_cells_without_a_point():
    """For perfect features the corrected loss of the points is near 0: cells without a point contribute nothing."""
    features, direction, targets = sample()
    # all patches have one feature, which is right for a completely defective cloud
    patches = direction.expand_as(features.patches) * 100
    targets = targets._replace(points=targets.valid, visible=targets.valid[:, None].expand_as(targets.visible))
    for paper in (False, True):
        loss = hybrid_loss(ClipFeatures(features.cls, patches), direction, targets, paper=paper).points_local
        assert (loss.item() > 0.1) == paper


def test_focal_of_certain_predictions_stays_finite():
    for p in (0.0, 1.0):
        assert focal(torch.tensor([p]), torch.tensor([1 - p])).item() == pytest.approx(-math.log(2e-5), rel=1e-3)
        assert focal(torch.tensor([p]), torch.tensor([p])).item() == pytest.approx(0, abs=1e-6)
