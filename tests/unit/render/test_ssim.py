# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.nn import functional as F

from anomalib_pose.render.ssim import _by_convolution, ssim


def _definition(a, b):
    """Compute the mean similarity with a 2D window in float64."""
    x, y = (image.double().reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2) for image in (a, b))
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def blur(image):
        return F.conv2d(image, window, padding=5, groups=3)

    mx, my = blur(x), blur(y)
    sx, sy, sxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * sxy + c2) / ((mx * mx + my * my + c1) * (sx + sy + c2))).mean()


def _images(*shape, noise=0.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(*shape, 3, generator=g)
    return a, (a + noise * torch.randn(*shape, 3, generator=g)).clamp(0, 1)


SHAPES = [(1, 1), (3, 2), (11, 11), (40, 31), (32, 32), (64, 33), (65, 64), (130, 70), (2, 20, 90), (3, 70, 5)]


@pytest.mark.parametrize("implementation", [ssim, _by_convolution])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition(implementation, shape):
    a, b = _images(*shape)
    leaves = [image.clone().requires_grad_() for image in (a, b)]
    expected_leaves = [image.double().requires_grad_() for image in (a, b)]
    value, expected = implementation(*leaves), _definition(*expected_leaves)
    assert value.item() == pytest.approx(expected.item(), abs=2e-6)
    (3 * value).backward()
    (3 * expected).backward()
    for leaf, truth in zip(leaves, expected_leaves, strict=True):
        assert (leaf.grad - truth.grad).norm() < 1e-4 * truth.grad.norm()
        assert (leaf.grad - truth.grad).abs().max() < 1e-3 * truth.grad.abs().max()


@pytest.mark.parametrize("flat", [0.0, 0.5, 1.0])
def test_uniform_images_agree_with_the_definition(flat):
    """Variances are 0 except for round-off, so the similarity is the similarity of the means."""
    a, b = torch.full((50, 50, 3), flat, requires_grad=True), torch.full((50, 50, 3), 0.8)
    value, expected = ssim(a, b), _definition(a, b)
    assert value.item() == pytest.approx(expected.item(), abs=3e-4)
    gradient, truth = torch.autograd.grad(value, a)[0], torch.autograd.grad(expected, a)[0]
    assert (gradient - truth).norm() < 5e-3 * truth.norm()


def test_equal_images_have_similarity_1():
    a, _ = _images(30, 30)
    a.requires_grad_()
    value = ssim(a, a.detach())
    assert value.item() == pytest.approx(1, abs=1e-6)
    value.backward()
    assert a.grad.abs().max() < 1e-6


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_image_equals_its_gradient_of_both(which):
    images = list(_images(40, 50))
    both = [image.clone().requires_grad_() for image in images]
    ssim(*both).backward()
    images[which] = images[which].clone().requires_grad_()
    ssim(*images).backward()
    assert torch.equal(images[which].grad, both[which].grad)
    assert images[1 - which].grad is None


def test_strided_and_float64_images_are_supported():
    a, b = _images(3, 40, 30)
    strided = a.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not strided.is_contiguous()
    assert torch.equal(ssim(strided, b), ssim(a, b))
    double = a.double().requires_grad_()
    value = ssim(double, b.double())
    assert value.dtype == torch.float64
    value.backward()
    assert double.grad.dtype == torch.float64


def test_same_bits_on_any_number_of_threads():
    a, b = _images(2, 150, 140)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = a.clone().requires_grad_()
            value = ssim(leaf, b)
            value.backward()
            results.append((value.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_gradient_ascent_recovers_the_image():
    _, target = _images(24, 24)
    image = torch.full_like(target, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (1 - ssim(image, target)).backward()
        optimizer.step()
    assert ssim(image.detach(), target) > 0.98


def test_invalid_input_is_refused():
    a, b = _images(8, 9)
    with pytest.raises(ValueError, match="one shape"):
        ssim(a, b[:7])
    with pytest.raises(ValueError, match="one shape"):
        ssim(a[0], b[0])
    with pytest.raises(ValueError, match="one device"):
        ssim(a, b.to("meta"))
