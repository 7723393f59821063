# SPDX-License-Identifier: Apache-2.0
"""Checks of export settings before the first view is rendered."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from anomalib.deploy import CompressionType

_OWN = ("model", "args", "f", "kwargs", "output_names")
"""Arguments of ``torch.onnx.export`` that the export sets itself."""


def checked_compression(value: Any) -> CompressionType | None:
    """Return a compression by its value, its name, or None.

    Args:
        value: ``CompressionType``, text or None.

    Raises:
        ValueError: if the compression is unknown, or ``INT8_ACQ``.
    """
    if value is None or isinstance(value, CompressionType):
        compression = value
    else:
        known = {text.lower(): kind for kind in CompressionType for text in (kind.name, str(kind.value))}
        if str(value).lower() not in known:
            msg = f"compression_type should be none, FP16, INT8 or INT8_PTQ, got {value!r}."
            raise ValueError(msg)
        compression = known[str(value).lower()]
    if compression == CompressionType.INT8_ACQ:
        msg = (
            "compression_type INT8_ACQ quantizes the whole graph, whose poses and maps need full precision: give "
            "INT8_PTQ, INT8 or FP16."
        )
        raise ValueError(msg)
    return compression


def check_arguments(arguments: Mapping[str, Any], graph_settings: Collection[str]) -> None:
    """Refuse arguments of an export that nothing reads.

    Args:
        arguments: arguments besides the settings of the graph.
        graph_settings: names of the settings of the graph, for the message.

    Raises:
        ValueError: if an argument is unknown.
    """
    known = set(inspect.signature(torch.onnx.export).parameters) - {*_OWN}
    unknown = sorted(set(arguments) - known)
    if unknown:
        msg = (
            f"The export has no setting {', '.join(map(repr, unknown))}: give {', '.join(graph_settings)}, or "
            "arguments of torch.onnx.export."
        )
        raise ValueError(msg)


def check_input_size(input_size: Any, training_size: tuple[int, int] | None = None) -> None:
    """Refuse an input size that is not a (height, width), or has another aspect than the training views.

    Args:
        input_size: fixed (height, width) of the images, or None.
        training_size: (height, width) of the training views; None if any aspect is accepted.

    Raises:
        ValueError: if the size is refused.
    """
    if input_size is None:
        return
    size = [*input_size] if isinstance(input_size, list | tuple) else []
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        msg = f"input_size should be (height, width) in pixels, got {input_size!r}."
        raise ValueError(msg)
    # Rounding of a small size changes the aspect by up to one pixel.
    if training_size is not None and abs(size[0] * training_size[1] / (size[1] * training_size[0]) - 1) > 1 / min(
        *training_size, *size
    ):
        msg = (
            f"input_size {tuple(size)} has another aspect than the training views, {tuple(training_size)}: the camera "
            "of the training views does not apply to it."
        )
        raise ValueError(msg)
