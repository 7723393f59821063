# SPDX-License-Identifier: Apache-2.0
"""A ball in another light: the fitted light follows Lambert's law in spite of a defect."""

import torch

from anomalib_pose.compare.lighting.shading import relight_query, relight_reference, surface_normals

SIZE = 96
AXIS = (torch.arange(SIZE) + 0.5) / SIZE * 2.4 - 1.2
Y, X = torch.meshgrid(AXIS, AXIS, indexing="ij")
ALPHA = ((X.square() + Y.square()) < 1).float()
NORMALS = torch.stack([X, Y, -(1 - X.square() - Y.square()).clamp(min=0).sqrt()], -1)
POINTS = NORMALS + torch.tensor([0.0, 0.0, 4.0])
INNER = (X.square() + Y.square()) < 0.7


def lit(albedo: torch.Tensor, light: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    shade = 0.5 + 0.5 * (NORMALS @ light)
    return torch.where(ALPHA > 0, albedo * shade * color[:, None, None], 1.0)


def test_normals_of_a_ball():
    relit = surface_normals(POINTS[None], ALPHA[None])[0]
    # the camera is at the origin: the ball's outer normals point at it
    cosine = (relit * NORMALS).sum(-1)[INNER]
    assert (cosine < -0.99).all()
    assert not relit[ALPHA == 0].any()


def test_normals_change_continuously_with_opacity():
    """At a threshold, rounding would decide, and differently in each runtime."""
    rim = torch.where((ALPHA > 0) & ~INNER, 0.5, ALPHA)
    below, above = (surface_normals(POINTS[None], (rim + change * (rim == 0.5))[None]) for change in (-1e-6, 1e-6))
    torch.testing.assert_close(below, above, atol=1e-4, rtol=0)


def test_relighting_removes_light_but_not_defects():
    albedo = 0.3 + 0.4 * (torch.rand(3, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0)))
    albedo = albedo.repeat_interleave(8, 1).repeat_interleave(8, 2)
    reference = albedo.clone()
    reference[:, ALPHA == 0] = 1  # photographed in light from everywhere
    light = torch.nn.functional.normalize(torch.tensor([-1.0, 0.5, -1.0]), dim=0)
    query = lit(albedo, light, torch.tensor([1.0, 0.8, 0.5]))
    defect = (slice(None), slice(40, 52), slice(30, 42))
    defective = query.clone()
    defective[defect] = torch.tensor([0.1, 0.9, 0.2])[:, None, None]
    relit = relight_reference(*(part[None] for part in (defective, reference, ALPHA, POINTS)))[0]
    before = (reference - query)[:, INNER].abs().mean()
    assert before > 0.1
    assert (relit - query)[:, INNER].abs().mean() < 0.03 * before
    assert (relit - defective)[defect].abs().mean() > 0.2
    assert torch.equal(relit[:, ALPHA == 0], reference[:, ALPHA == 0])
    back = relight_query(*(part[None] for part in (defective, reference, ALPHA, POINTS)))[0]
    without_defect = INNER.clone()
    without_defect[defect[1:]] = False
    assert (back - reference)[:, without_defect].abs().mean() < 0.03 * before
    assert (back - reference)[defect].abs().mean() > 0.2
    assert torch.equal(back[:, ALPHA == 0], defective[:, ALPHA == 0])


def test_relighting_keeps_equal_light_and_tiny_objects():
    reference = torch.where(ALPHA > 0, 0.6, 1.0).expand(3, -1, -1)
    same = relight_reference(*(part[None] for part in (reference, reference, ALPHA, POINTS)))[0]
    torch.testing.assert_close(same, reference, atol=1e-4, rtol=0)
    tiny_object = torch.zeros_like(ALPHA)
    tiny_object[:5, :5] = 1
    assert torch.equal(
        relight_reference(1 - reference[None], reference[None], tiny_object[None], POINTS[None])[0], reference
    )
    assert torch.equal(
        relight_query(reference[None], 1 - reference[None], tiny_object[None], POINTS[None])[0], reference
    )
