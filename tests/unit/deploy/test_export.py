# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType

from anomalib_pose.deploy.export import ExportedDetector, keep_precision

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


def test_every_operation_is_marked_and_the_model_says_the_same(tmp_path):
    operations = openvino.opset13
    image = operations.parameter([1, 3], np.float32)
    sums = operations.multiply(operations.add(image, np.float32(0.1)), np.array([[2.0, 3.0, 5.0]], np.float32))
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.Model([sums], [image]), path)
    keep_precision(path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".xml", ".bin"}
    model = openvino.Core().read_model(path)
    # OpenVINO gives the mark different names in different releases
    marked = [any("ecision" in name or "precise" in name for name in node.get_rt_info()) for node in model.get_ops()]
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert [mark for mark, kind in zip(marked, kinds, strict=True) if kind in ("Add", "Multiply")] == [True, True]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(np.array([[1.0, 2.0, 3.0]], np.float32))[0]
    np.testing.assert_allclose(found, [[2.2, 6.3, 15.5]], rtol=1e-5)


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
