# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType

from anomalib_pose.deploy.openvino.export import ExportedDetector

pytest.importorskip("openvino", reason="the extra openvino is not installed")


def test_an_export_that_fails_leaves_no_folder(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, images):
            raise ArithmeticError

    with pytest.raises((ArithmeticError, RuntimeError)):
        ExportedDetector(Broken(), None).to_onnx(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept.txt").write_text("kept")
    with pytest.raises((ArithmeticError, RuntimeError)):
        ExportedDetector(Broken(), None).to_onnx(tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["kept.txt"]


def test_eight_bits_are_for_the_network_alone(caplog):
    """Without one nothing is compressed: what is drawn and where cameras are found would change."""
    drawn = torch.nn.Module()
    drawn.keeps_precision, drawn.comparator = True, torch.nn.Module()
    model = object()
    assert ExportedDetector(drawn, None)._compress_ov_model(model, CompressionType.INT8) is model
    assert "there is none" in caplog.text


def test_the_networks_weights_have_eight_bits_and_nothing_else():
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("nncf", reason="nncf is not installed")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3, groups=32))
    drawn = torch.nn.Module()
    drawn.keeps_precision, drawn.comparator = True, torch.nn.Module()
    drawn.comparator.extractor = network
    operations = openvino.opset13
    image = operations.parameter([1, 3, 16, 16], np.float32)
    turned = operations.matmul(image, operations.constant(np.eye(16, dtype=np.float32)), False, False)
    first = operations.convolution(turned, network[0].weight.detach().numpy(), [1, 1], [0, 0], [0, 0], [1, 1])
    kernels = network[1].weight.detach().numpy()[:, None]
    second = operations.group_convolution(first, kernels, [1, 1], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([second], [image], "network")
    compressed = ExportedDetector(drawn, None)._compress_ov_model(model, CompressionType.INT8)
    eight = [node for node in compressed.get_ops() if node.get_output_element_type(0) == openvino.Type.u8]
    sizes = sorted(int(np.prod(node.get_output_shape(0))) for node in eight if node.get_type_name() == "Constant")
    # besides the weights, a zero point for each of their 32 channels
    assert sizes == [32, 32, 32 * 9, 32 * 3 * 9]
