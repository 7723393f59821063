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
    (tmp_path / "old" / "notes.txt").write_text("notes")
    with pytest.raises((ArithmeticError, RuntimeError)):
        ExportedDetector(Broken(), None).to_onnx(tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]


def test_without_a_network_int8_compresses_nothing(caplog):
    """Eight bits would change rasterized references and poses."""
    detector = torch.nn.Module()
    detector.keeps_precision, detector.comparator = True, torch.nn.Module()
    model = object()
    assert ExportedDetector(detector, None)._compress_ov_model(model, CompressionType.INT8) is model
    assert "This model has none" in caplog.text


def test_int8_compresses_the_weights_of_the_network_only():
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("nncf", reason="nncf is not installed")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3, groups=32))
    detector = torch.nn.Module()
    detector.keeps_precision, detector.comparator = True, torch.nn.Module()
    detector.comparator.extractor = network
    operations = openvino.opset13
    image = operations.parameter([1, 3, 16, 16], np.float32)
    product = operations.matmul(image, operations.constant(np.eye(16, dtype=np.float32)), False, False)
    first = operations.convolution(product, network[0].weight.detach().numpy(), [1, 1], [0, 0], [0, 0], [1, 1])
    kernels = network[1].weight.detach().numpy()[:, None]
    second = operations.group_convolution(first, kernels, [1, 1], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([second], [image], "network")
    compressed = ExportedDetector(detector, None)._compress_ov_model(model, CompressionType.INT8)
    eight_bit = [node for node in compressed.get_ops() if node.get_output_element_type(0) == openvino.Type.u8]
    sizes = sorted(int(np.prod(node.get_output_shape(0))) for node in eight_bit if node.get_type_name() == "Constant")
    # besides the weights, a zero point for each of their 32 channels
    assert sizes == [32, 32, 32 * 9, 32 * 3 * 9]
