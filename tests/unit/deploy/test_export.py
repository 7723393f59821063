# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from anomalib.deploy import CompressionType

from anomalib_pose.deploy.export import ExportedDetector

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
