# SPDX-License-Identifier: Apache-2.0
"""The fast form agrees with the published one for several shapes; matching agrees with loops and sorts."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from anomalib_pose.models.looking3d.attention import Attention
from anomalib_pose.models.looking3d.decoder import grid_code
from anomalib_pose.models.looking3d.encoder import cell_index
from anomalib_pose.models.looking3d.matching import (
    affinity,
    foreground_cells,
    foreground_weights,
    match_residual,
    top_keys,
)
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map, coarser, normalize


@pytest.fixture(scope="module")
def small() -> Looking3DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Looking3DModel(topk=20).eval().requires_grad_(False)


def photographs(count: int, seed: int) -> torch.Tensor:
    """Create images with large random spots on white (count, 3, 256, 256)."""
    g = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 256, 256)
    spots = nn.functional.interpolate(torch.rand(count, 3, 12, 10, generator=g), size=(130, 120), mode="bicubic")
    images[..., 70:200, 50:170] = spots.clamp(0, 0.85)
    return images


def coordinates(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, 32, 32, 3, generator=torch.Generator().manual_seed(seed)) - 1


def test_foreground_weights_agree_with_scipy():
    images = (torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 0.16 + 0.86) * 2 - 1
    images[:, :, 100:180, 90:200] -= 0.3
    images[:, :, :70] = 1
    for image, weights in zip(images.numpy(), foreground_weights(images), strict=True):
        gray = 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        dark = ndimage.binary_dilation(gray < 0.8, np.ones((3, 3)), iterations=2).astype(float)
        expected = nn.functional.interpolate(torch.from_numpy(dark)[None, None], size=(32, 32), mode="bilinear")
        np.testing.assert_array_equal(weights, expected[0, 0])
    assert {0.0, 1.0} < set(foreground_weights(images).unique().tolist())


def test_keys_agree_with_a_stable_sort():
    """Zeros, in a part of a row or in all of it, are taken in order; negative affinities come after them."""
    affinities = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0))
    affinities[0, 1] = 0
    affinities[0, 2, 5:] = -0.0
    affinities[0, 3, ::2] = 0
    affinities[0, 4] = -affinities[0, 4].abs()
    affinities[0, 4, 30:] = 0
    keys = top_keys(affinities, 25)[0].sort(1).values
    expected = np.argsort(-affinities[0].numpy(), axis=1, kind="stable")[:, :25]
    np.testing.assert_array_equal(keys, np.sort(expected, 1))
    assert top_keys(affinities, 80).shape == (1, 6, 50)


def test_absorbed_attention_agrees_with_a_loop():
    """Softmax over the context of each query, head by head, key by key."""
    attention = Attention(6)
    g = torch.Generator().manual_seed(0)
    queries, gathered = torch.randn(1, 3, 512, generator=g), torch.randn(1, 3, 4, 6, generator=g)
    attended = attention.absorbed(queries, gathered)
    with torch.no_grad():
        for row in range(3):
            q, keys, values = (
                attention.to_q(queries[0, row]),
                *(part(gathered[0, row]) for part in (attention.to_k, attention.to_v)),
            )
            heads = []
            for head in range(8):
                at = slice(64 * head, 64 * head + 64)
                logits = [float(q[at] @ key[at]) / 8 for key in keys]
                weights = [math.exp(one) / sum(map(math.exp, logits)) for one in logits]
                heads.append(sum(weight * value[at] for weight, value in zip(weights, values, strict=True)))
            torch.testing.assert_close(attended[0, row], attention.to_out(torch.cat(heads)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("query_position", [False, True])
def test_the_fast_form_agrees_with_the_published_one_for_several_shapes(small, query_position):
    model = Looking3DModel(topk=20, query_position=query_position).eval().requires_grad_(False)
    model.load_state_dict(small.state_dict(), strict=False)
    if query_position:
        nn.init.normal_(
            model.attention_decoder.query_position.weight, std=0.05, generator=torch.Generator().manual_seed(2)
        )
    query, shape = photographs(2, 0), model.reference(photographs(2, 1)[:, None], coordinates((2, 1), 2))
    fast, plain = model(query, shape), model(query, shape, published=True)
    torch.testing.assert_close(fast.logit, plain.logit, rtol=0, atol=1e-4)
    torch.testing.assert_close(fast.box, plain.box, rtol=0, atol=1e-4)
    for index in range(2):
        alone = model(query[index, None], ReferenceShape(*(part[index, None] for part in shape[:2])))
        torch.testing.assert_close(alone.logit, fast.logit[index, None], rtol=0, atol=1e-5)
    if query_position:
        assert (small(query, shape).logit - fast.logit).abs().min() > 1e-4


def test_initial_position_encodings_change_nothing(small):
    model = Looking3DModel(topk=20, query_position=True).eval().requires_grad_(False)
    model.load_state_dict(small.state_dict(), strict=False)
    query, shape = photographs(1, 0), small.reference(photographs(2, 1)[None], coordinates((1, 2), 2))
    torch.testing.assert_close(model(query, shape), small(query, shape), rtol=0, atol=0)
    assert len(grid_code().unique(dim=0)) == 1024


def test_a_compact_shape_has_the_same_output(small):
    query, whole = photographs(1, 0), small.reference(photographs(2, 1)[None], coordinates((1, 2), 2))
    compact = whole.compact(small.topk)
    assert compact.descriptors.shape[1] < 0.5 * whole.descriptors.shape[1]
    torch.testing.assert_close(small(query, compact), small(query, whole), rtol=0, atol=1e-5)
    index = [
        top_keys(affinity(small.describe(2 * query - 1, small.encoder(2 * query - 1))[0], shape.descriptors), 20)
        for shape in (whole, compact)
    ]
    assert torch.equal(index[0].sort().values, compact.cell_indices[index[1]].sort().values)
    with pytest.raises(ValueError, match="Expected one whole shape to make compact"):
        compact.compact(20)


def test_the_residual_is_one_minus_the_largest_cosine_on_the_object(small):
    query = photographs(1, 0)
    shape = small.reference(photographs(2, 1)[None], coordinates((1, 2), 2))
    residual = small(query, shape).residual
    weights = foreground_weights(2 * query - 1)[0].flatten()
    unit = small.projector(small.encoder(2 * query - 1))[0].flatten(1).T
    expected = torch.stack(
        [
            w * (1 - max(float(one @ d) for d in shape.descriptors[0]))
            for w, one in zip(weights[::37], unit[::37], strict=True)
        ]
    )
    torch.testing.assert_close(residual.flatten()[::37], expected.clamp(min=0), rtol=0, atol=1e-5)
    assert residual.max() > 0.01
    assert float(anomaly_map(residual).max()) <= float(residual.max())
    itself = small(query, small.reference(query[None], coordinates((1, 1), 3))).residual
    # affinities of partly covered cells contain two weights below 1: of the query and of the view
    assert float(itself[foreground_weights(2 * query - 1) == 1].max()) < 1e-5


def test_wrong_sizes_are_refused(small):
    shape = small.reference(photographs(1, 1)[None], coordinates((1, 1), 2))
    with pytest.raises(ValueError, match="RGB images of 256 x 256 pixels, got"):
        small(torch.rand(1, 3, 128, 256), shape)
    with pytest.raises(ValueError, match="topk should be"):
        Looking3DModel(topk=-1)
    assert match_residual(torch.zeros(1, 1024, 4), torch.ones(1, 32, 32)).min() == 1


def test_smaller_images_average_pixels_and_keep_the_places_of_cells():
    images = photographs(2, 4)
    expected = nn.functional.avg_pool2d(images, 2) * 2 - 1
    torch.testing.assert_close(normalize(images, 128), expected, rtol=0, atol=1e-6)
    points = torch.tensor([[0, 0], [15, 16], [255, 255], [-3, 300], [100, 47]])
    assert cell_index(points, 16).tolist() == [0, 1, 255, 15, 6 * 16 + 2]
    code, fine = (grid_code(grid).unflatten(0, (grid, grid)) for grid in (16, 32))
    torch.testing.assert_close(code, fine[::2, ::2])


def test_coordinates_of_merged_cells_agree_with_a_loop():
    g = torch.Generator().manual_seed(0)
    xyz = torch.rand(2, 8, 8, 3, generator=g)
    xyz[torch.rand(2, 8, 8, generator=g) < 0.6] = -1
    xyz[0, 2:4, 4:6] = -1
    merged = coarser(xyz, 2)
    for image, row, column in np.ndindex(2, 4, 4):
        # the common corner of all four cells is the center of the merged cell and the first corner of the last one
        around = [xyz[image, 2 * row + i, 2 * column + j] for i, j in ((1, 1), (1, 0), (0, 1), (0, 0))]
        nonempty = [position for position in around if (position != -1).any()]
        assert torch.equal(merged[image, row, column], nonempty[0] if nonempty else torch.full((3,), -1.0))
    assert torch.equal(coarser(xyz, 1), xyz)


def test_foreground_cells_agree_with_a_stable_sort():
    weights = torch.randint(0, 5, (3, 16, 16), generator=torch.Generator().manual_seed(0)) / 4
    selected = foreground_cells(weights, 100)
    expected = np.argsort(-weights.flatten(1).numpy(), axis=1, kind="stable")[:, :100]
    np.testing.assert_array_equal(selected, np.sort(expected, 1))


@pytest.mark.parametrize("query_cells", [256, 90])
def test_attention_for_fewer_cells_of_smaller_images(query_cells):
    """Selecting all cells changes nothing; for fewer cells both forms agree."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Looking3DModel(topk=20, query_position=True, image_size=128, query_cells=query_cells).eval()
        nn.init.normal_(model.attention_decoder.query_position.weight, std=0.1)
    images, views = photographs(2, 5), photographs(2, 6)[None]
    with torch.no_grad():
        shape = model.reference(views, coordinates((1, 2), 7))
        fast = model(images, shape.compact(model.topk))
        published = model(images, shape, published=True)
        model.query_cells = 0
        all_cells = model(images, shape, published=True)
    assert fast.residual.shape == (2, 16, 16)
    torch.testing.assert_close(fast.logit, published.logit, rtol=0, atol=1e-4)
    torch.testing.assert_close(fast.box, published.box, rtol=0, atol=1e-4)
    assert torch.allclose(all_cells.logit, fast.logit, rtol=0, atol=1e-4) == (query_cells == 256)
    for size, cells, message in (
        (100, 0, "image_size should be one of 256, 128, got 100"),
        (128, 257, "1 to 256 cells"),
    ):
        with pytest.raises(ValueError, match=message):
            Looking3DModel(image_size=size, query_cells=cells)
