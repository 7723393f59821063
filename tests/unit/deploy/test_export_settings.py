# SPDX-License-Identifier: Apache-2.0
"""Export settings that are unknown, out of range or without effect are refused before anything is built."""

import math

import pytest
from anomalib.deploy import CompressionType
from torch import nn

from anomalib_pose.deploy import DetectorSettings
from anomalib_pose.deploy.export_settings import check_arguments, check_input_size, checked_compression
from anomalib_pose.deploy.openvino.export import check_quantization
from anomalib_pose.models import Looking3D, OmniposeAD, PointAD
from sample_models import make_fitted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (CompressionType.FP16, CompressionType.FP16),
        ("INT8", CompressionType.INT8),
        ("int8_ptq", CompressionType.INT8_PTQ),
        ("fp16", CompressionType.FP16),
    ],
)
def test_compressions_by_value_and_name(value, expected):
    assert checked_compression(value) == expected


@pytest.mark.parametrize("value", [CompressionType.INT8_ACQ, "INT8_ACQ", "int8_acq"])
@pytest.mark.parametrize("model", [make_fitted, Looking3D, PointAD])
def test_int8_acq_is_refused_by_every_model(model, value, tmp_path):
    with pytest.raises(ValueError, match=r"INT8_ACQ quantizes the whole graph.* give INT8_PTQ, INT8 or FP16"):
        model().to_openvino(tmp_path, compression_type=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["int4", "", 8])
def test_unknown_compressions_are_refused(value):
    with pytest.raises(ValueError, match="should be none, FP16, INT8 or INT8_PTQ, got"):
        checked_compression(value)


@pytest.mark.parametrize("model", [make_fitted, Looking3D, PointAD])
@pytest.mark.parametrize("kind", ["to_onnx", "to_openvino"])
def test_unknown_settings_are_refused_with_the_known_ones(model, kind, tmp_path):
    fitted = model()
    arguments = {"view": 3} if kind == "to_onnx" else {"onnx_kwargs": {"view": 3}}
    with pytest.raises(ValueError, match="The export has no setting 'view': give") as error:
        getattr(fitted, kind)(tmp_path, **arguments)
    assert all(name in str(error.value) for name in fitted.graph_settings)


def test_arguments_of_torch_are_known():
    check_arguments({"opset_version": 18, "dynamic_axes": None, "input_names": ["a"]}, ())
    with pytest.raises(ValueError, match="no setting 'model', 'output_names'"):
        check_arguments({"output_names": ["a"], "model": None}, ())


SIZES = {
    "same": ((64, 64), True),
    "larger": ((128, 128), True),
    "rounded": ((63, 64), True),
    "list": ([64, 64], True),
    "none": (None, True),
    "landscape": ((64, 96), False),
    "portrait": ((128, 64), False),
    "zero": ((0, 0), False),
    "negative": ((-64, -64), False),
    "one number": (64, False),
    "three numbers": ((3, 64, 64), False),
    "text": ("64", False),
    "floats": ((64.0, 64.0), False),
}


@pytest.mark.parametrize("name", SIZES)
def test_input_sizes_have_the_aspect_of_the_training_views(name):
    size, works = SIZES[name]
    if works:
        check_input_size(size, (64, 64))
        return
    with pytest.raises(ValueError, match="input_size"):
        check_input_size(size, (64, 64))


@pytest.mark.parametrize("kind", ["to_onnx", "to_openvino"])
def test_a_model_refuses_another_aspect_before_it_builds_the_detector(kind, tmp_path):
    with pytest.raises(ValueError, match=r"input_size \(64, 96\) has another aspect than the training views, \(64, 64"):
        getattr(make_fitted(), kind)(tmp_path, input_size=(64, 96))
    assert not list(tmp_path.iterdir())


def test_quantization_needs_a_network_and_images(tmp_path):
    for comparator in (None, nn.Identity()):
        with pytest.raises(ValueError, match="This model has none: give a backbone, or export FP16"):
            check_quantization(comparator, None)
    with pytest.raises(ValueError, match="This model has none"):
        make_fitted().to_openvino(tmp_path, compression_type="INT8_PTQ")
    network = make_fitted(backbone="test_resnet")
    with pytest.raises(ValueError, match="measures activations on images, got no data"):
        network.to_openvino(tmp_path, compression_type="INT8_PTQ")


BAD = {
    "views": ["a", 1.5, 0, None, True],
    "starts": [0, -1],
    "size": [10, -1],
    "oversampling": [0.5, math.nan, math.inf, "a"],
    "steps": [5, (1, 2), (1, 2, "a"), (1, 2, -3)],
    "max_megabytes": [0, -5],
    "drawn": ["yes", 1],
    "photographs": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_values_of_other_types_and_ranges_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        DetectorSettings(**{name: value})


@pytest.mark.parametrize("setting", [{"drawn_size": 128}, {"oversampling": 2.0}, {"photographs": 12}])
def test_settings_of_rasterized_references_need_gaussians(setting):
    (name,) = setting
    DetectorSettings(**setting)
    with pytest.raises(ValueError, match=f"{name}=.* needs rasterized Gaussians, got drawn=False"):
        DetectorSettings(drawn=False, **setting)
    model = OmniposeAD()
    model.model.bank.poses = make_fitted().model.bank.poses
    with pytest.raises(ValueError, match=f"{name}=.* needs rasterized Gaussians, got a scene without Gaussians"):
        model.feed_forward(**setting)
