# SPDX-License-Identifier: Apache-2.0
"""Taps, weights that come late, and what is said when they cannot come."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from anomalib_pose.compare import (
    CalibratedComparator,
    FeatureExtractor,
    PaperComparator,
    WindowSettings,
    make_comparator,
)

TINY = "test_efficientnet.r160_in1k"


@pytest.fixture
def network():
    torch.manual_seed(3)
    return timm.create_model(TINY, pretrained=False, num_classes=11).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_features_equal_those_of_the_whole_network(tmp_path, network, image, ending):
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    extractor = FeatureExtractor(TINY, (0, 2), weights_path=str(path), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    features = extractor(image)
    normalized = (image - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        outputs = []
        x = network.bn1(network.conv_stem(normalized))
        for block in network.blocks:
            x = block(x)
            outputs.append(x)
    strides = [64 // output.shape[-1] for output in outputs]
    expected = [[o for o, s in zip(outputs, strides, strict=True) if s == stride][-1] for stride in extractor.strides]
    assert extractor.strides == (2, 8)
    for feature, expected_feature in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, expected_feature)


def test_layers_of_the_papers_network():
    extractor = FeatureExtractor("tf_efficientnet_b4.aa_in1k")
    network = timm.create_model("tf_efficientnet_b4.aa_in1k", pretrained=False)
    blocks = [block for stage in network.blocks for block in stage]
    extractor.loaded.fill_(value=True)
    extractor.network.load_state_dict(
        {k: v for k, v in network.state_dict().items() if k in extractor.network.state_dict()}
    )
    outputs = {}
    for index in (1, 5, 9, 21):
        blocks[index].register_forward_hook(lambda module, args, output, index=index: outputs.update({index: output}))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.eval()(extractor.normalize(image))
    features = extractor(image)
    assert [f.shape[1] for f in features] == [24, 32, 56, 160]
    for feature, index in zip(features, (1, 5, 9, 21), strict=True):
        torch.testing.assert_close(feature, outputs[index])


def test_checkpoint_needs_no_file(tmp_path, network, image):
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    first = FeatureExtractor(TINY, (1,), weights_path=str(path))
    expected = first(image)
    path.unlink()
    second = FeatureExtractor(TINY, (1,), weights_path=str(path))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(image), expected, rtol=0, atol=0)


def test_constructor_keeps_the_random_state_and_network_stays_frozen():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    extractor = FeatureExtractor(TINY)
    torch.testing.assert_close(torch.rand(3), expected)
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_missing_weights_say_what_to_do(tmp_path, network, image, monkeypatch):
    with pytest.raises(RuntimeError, match="Give weights_path, switch pretrained on, or load a checkpoint"):
        FeatureExtractor(TINY, pretrained=False)(image)
    with pytest.raises(FileNotFoundError, match=r"Expected the backbone.s weights, as weights_path, .*absent\.pth"):
        FeatureExtractor(TINY, weights_path=str(tmp_path / "absent.pth"))(image)
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"should hold the weights of .*Name the network that the file"):
        FeatureExtractor(TINY, weights_path=str(other))(image)

    extractor = FeatureExtractor(TINY)

    def offline(*args, **kwargs):
        message = "no route"
        raise OSError(message)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"could not be downloaded \(no route\).*Give weights_path"):
        extractor(image)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name of a timm network, got 'nothing'"):
        FeatureExtractor("nothing")
    with pytest.raises(ValueError, match="stages from 0 to 4"):
        FeatureExtractor(TINY, (0, 9))
    with pytest.raises(ValueError, match="one of 'calibrated', 'illumination', 'paper', 'product', got 'other'"):
        make_comparator("other")
    with pytest.raises(ValueError, match="'paper' has one network: leave second_backbone empty"):
        make_comparator("paper", TINY, second_backbone=TINY)
    two_networks = make_comparator(
        "illumination", TINY, second_backbone="test_vit.r160_in1k", second_weights_path="f.pth"
    )
    assert two_networks.second.backbone == "test_vit.r160_in1k"
    assert two_networks.second.weights_path == "f.pth"


def test_factory_builds_the_named_comparator():
    assert isinstance(make_comparator("paper", TINY), PaperComparator)
    comparator = make_comparator(window=WindowSettings(64))
    assert isinstance(comparator, CalibratedComparator)
    assert comparator.extractor is None
    assert comparator.window.size == 64


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "vit_tiny_patch16_dinov3_qkvb"])
def test_layers_of_a_transformer_are_its_blocks_at_any_size(tmp_path, name):
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = FeatureExtractor(name, (), weights_path=str(tmp_path / "weights.pth"))
    depth = len(network.blocks)
    assert extractor.layers == (depth // 2, 3 * depth // 4)
    image = torch.rand(1, 3, 90, 72, generator=torch.Generator().manual_seed(0))
    tokens = {}
    for layer in extractor.layers:
        network.blocks[layer].register_forward_hook(
            lambda _module, _inputs, output, layer=layer: tokens.update({layer: output})
        )
    resized = torch.nn.functional.interpolate(extractor.normalize(image), (96, 64), mode="bilinear")
    with torch.no_grad():
        network.forward_features(resized)
    for layer, features in zip(extractor.layers, extractor(image), strict=True):
        grid = tokens[layer][:, network.num_prefix_tokens :].transpose(1, 2).unflatten(2, (6, 4))
        torch.testing.assert_close(features, grid)
