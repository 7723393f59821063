# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from anomalib_pose.deploy.openvino.precision import keep_precision

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


def all_rewritten_operations(image):
    """Slices, products of two and of four axes, a subtracted product, a sum, a resizing and a division."""
    operations = openvino.opset13
    rows = operations.constant(np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8))
    dynamic = operations.multiply(rows, operations.reduce_max(image, np.array([0, 1, 2, 3]), keep_dims=False))
    resized = operations.matmul(dynamic, image, transpose_a=False, transpose_b=False)
    matrix = np.array([[0.4, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.1, 0.9]], np.float32)
    squared = operations.multiply(image, image)
    resized = operations.subtract(resized, operations.matmul(dynamic, squared, transpose_a=False, transpose_b=False))
    colors = operations.einsum([operations.constant(matrix), resized], "oi,...ihw->...ohw")
    size = operations.constant(np.array([1, 3, 12, 15]))
    attributes = {"coordinate_transformation_mode": "half_pixel", "pads_begin": [0] * 4, "pads_end": [0] * 4}
    large = operations.interpolate(colors, size, "linear_onnx", "sizes", **attributes)
    first = operations.squeeze(operations.slice(large, *(np.array([part]) for part in (0, 1, 1, 1))), np.array([1]))
    offset = operations.unsqueeze(operations.divide(first, operations.add(first, np.float32(3))), np.array([1]))
    return operations.add(large, offset)


@pytest.fixture
def written(tmp_path):
    """The file of a rewritten model, and the model before."""
    operations = openvino.opset13
    image = operations.parameter([1, 3, 8, -1], np.float32)
    score = operations.reduce_sum(all_rewritten_operations(image), np.array([1, 2, 3]), keep_dims=False)
    score.output(0).get_tensor().set_names({"pred_score"})
    model = openvino.Model([score], [image])
    path = tmp_path / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    keep_precision(path)
    return path, model


IMAGE = np.random.default_rng(0).random((1, 3, 8, 5), dtype=np.float32)


def test_rewritten_models_compute_the_same(written):
    path, before = written
    assert {file.suffix for file in path.parent.iterdir()} == {".xml", ".bin"}
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    expected = openvino.Core().compile_model(before, "CPU", exact)(IMAGE)["pred_score"]
    np.testing.assert_allclose(openvino.Core().compile_model(path, "CPU", exact)(IMAGE)["pred_score"], expected, 1e-5)


def test_no_operation_runs_in_bf16_where_openvino_would_choose_it(written):
    path, before = written
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this machine has no BF16 instructions, so OpenVINO chooses none")

    def reduced(model):
        nodes = core.compile_model(model, "CPU").get_runtime_model().get_ops()
        return [
            node.get_friendly_name() for node in nodes if node.get_rt_info()["runtimePrecision"].astype(str) == "bf16"
        ]

    assert reduced(before)
    assert not reduced(path)


def test_every_operation_is_marked(written):
    path, _ = written
    nodes = [
        node
        for node in openvino.Core().read_model(path).get_ops()
        if node.get_type_name() not in ("Parameter", "Result")
    ]
    # OpenVINO gives the mark different names in different releases
    assert all(any("ecision" in name or "precise" in name for name in node.get_rt_info()) for node in nodes)


def test_a_score_is_nan_where_a_watched_number_is_infinite(written):
    path, _ = written
    image = IMAGE.copy()
    image[0, 0, 0, 0] = np.inf
    assert np.isnan(openvino.Core().compile_model(path, "CPU")(image)["pred_score"]).all()
