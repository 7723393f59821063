# SPDX-License-Identifier: Apache-2.0
"""OpenVINO models that run in the precision in which they are written, on every machine."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np

_NO_OPERATIONS = ("Parameter", "Result")
_REDUCED = ("MatMul", "Convolution", "GroupConvolution", "Interpolate")
"""Operations that OpenVINO always runs in BF16. It runs other operations in BF16 only if they lead to one of these."""
_SCALED = ("Multiply", "Divide", "Negative", "Subtract")
"""Operations that OpenVINO merges into the matrix product before them, if nothing else reads that product."""
_LARGEST = np.float32(np.finfo(np.float32).max)


def keep_precision(path: Path) -> None:
    """Make an OpenVINO model run in single precision on machines with BF16 instructions.

    On these machines OpenVINO chooses BF16 by itself. BF16's eight bits of mantissa resolve a pixel's column only to
    one pixel. Three measures prevent this:

    - All operations are marked as needing the precision in which they are written.
    - OpenVINO replaces many operations before it runs them, and the replacements have no mark. So matrix products, sums
      of products and resizings are written in the form that OpenVINO would replace them by.
    - OpenVINO keeps the precision of other operations, marked or not, if they lead to a result without passing one of
      those three kinds. So one number of each input of those operations is watched: the first result depends on it and
      is NaN if the number is not finite. A product that is scaled or subtracted is watched too, because
      OpenVINO would merge both operations into a new one.

    Args:
        path: the ``.xml`` file; it and its ``.bin`` are replaced.
    """
    import openvino

    model = openvino.Core().read_model(path)
    constants = _constants(model)
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "MatMul":
            _align_ranks(node, constants)
        elif kind in _REWRITTEN:
            _REWRITTEN[kind](node)
    _watch(model)
    model.validate_nodes_and_infer_types()
    with TemporaryDirectory(prefix=".precise-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        openvino.serialize(model, written)
        del model  # the model keeps the old file open
        _mark(written)
        for suffix in (".bin", ".xml"):
            written.with_suffix(suffix).replace(path.with_suffix(suffix))


def _align_ranks(product: Any, constants: set[str]) -> None:
    """Give both factors the same number of axes, as OpenVINO would in a new operation; constant weights need none."""
    from openvino import opset13

    ranks = [len(value.get_partial_shape()) for value in product.input_values()]
    low, high = sorted(range(2), key=ranks.__getitem__)
    weights = product.input_value(1).get_node().get_friendly_name()
    if ranks[low] < 2 or ranks[low] == ranks[high] or (low == 1 and weights in constants):
        return
    axes = opset13.constant(np.arange(ranks[high] - ranks[low]))
    product.input(low).replace_source_output(opset13.unsqueeze(product.input_value(low), axes).output(0))


def _replace_interpolation(node: Any) -> None:
    """Write a resizing to a fixed size in the form of operation set 4, which OpenVINO runs without replacing it."""
    from openvino import opset10

    if node.get_attributes()["shape_calculation_mode"] != "sizes" or node.get_input_size() != 2:
        return
    image, size = node.input_values()
    scales = opset10.constant(np.ones(len(node.get_output_partial_shape(0)), np.float32))
    _replace(node, opset10.interpolate(image, size, scales, **node.get_attributes()))


def _replace_sum_of_products(node: Any) -> None:
    """Write an einsum that applies a square matrix to the channels of images as a matrix product."""
    from openvino import opset13

    matrix, images = node.input_values()[:2]
    written = node.get_attributes()["equation"].replace(" ", "")
    square = len({*map(str, matrix.get_partial_shape())}) == 1
    if not (square and re.fullmatch(r"(\w)(\w),(\w|\.\.\.)\2(\w\w)->\3\1\4", written)):
        return
    if len(images.get_partial_shape()) != 4:
        return
    flat = opset13.reshape(images, opset13.constant(np.array([0, 0, -1])), special_zero=True)
    factor = opset13.unsqueeze(matrix, opset13.constant(np.array([0])))
    product = opset13.matmul(factor, flat, transpose_a=False, transpose_b=False)
    _replace(node, opset13.reshape(product, opset13.shape_of(images), special_zero=False))


_REWRITTEN = {"Interpolate": _replace_interpolation, "Einsum": _replace_sum_of_products}


def _replace(node: Any, new: Any) -> None:
    """Replace an operation by another one under the same name."""
    new.set_friendly_name(node.get_friendly_name())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))


def _watch(model: Any) -> None:
    """Watch a number of each input of operations that run in BF16 and of scaled products; see ``keep_precision``."""
    from openvino import Type, opset13

    constants = _constants(model)
    one, watched = opset13.constant(np.array([1])), {}
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _REDUCED:
            continue
        for value in (*node.input_values()[:2], *_scaled(node)):
            source = value.get_node()
            key = (source.get_friendly_name(), value.get_index())
            unquantized = value.get_element_type() == Type.f32 and source.get_type_name() != "FakeQuantize"
            if key not in watched and unquantized and key[0] not in constants:
                axes = len(value.get_partial_shape())
                zeros, ones = (opset13.constant(np.full(axes, number)) for number in (0, 1))
                corner = opset13.slice(value, zeros, ones, ones)  # works in any memory layout
                watched[key] = opset13.reshape(corner, one, special_zero=False)
    if not watched:
        return
    finite = opset13.less_equal(opset13.abs(opset13.concat(list(watched.values()), 0)), opset13.constant(_LARGEST))
    all_finite = opset13.reduce_logical_and(finite, opset13.constant(np.array([0])), keep_dims=False)
    result = model.get_results()[0]
    value = result.input_value(0)
    names = value.get_names()
    guarded = opset13.select(all_finite, value, opset13.constant(np.float32(np.nan)))
    result.input(0).replace_source_output(guarded.output(0))
    value.get_tensor().set_names(set())
    guarded.output(0).get_tensor().set_names(names)


def _scaled(node: Any) -> list[Any]:
    """Return the output of a matrix product whose only reader OpenVINO would merge with it; else nothing."""
    readers = [target.get_node().get_type_name() for output in node.outputs() for target in output.get_target_inputs()]
    merges = node.get_type_name() == "MatMul" and len(readers) == 1 and readers[0] in _SCALED
    return node.outputs() if merges else []


def _constants(model: Any) -> set[str]:
    """Return the names of the operations that depend on no input of the model."""
    names: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [value.get_node().get_friendly_name() for value in node.input_values()]
        if node.get_type_name() == "Constant" or (sources and names.issuperset(sources)):
            names.add(node.get_friendly_name())
    return names


def _mark(path: Path) -> None:
    """Mark all operations of a model as needing their precision."""
    tree = ElementTree.parse(path)  # noqa: S314  # just written by OpenVINO
    for layer in tree.iterfind("layers/layer"):
        if layer.get("type") in _NO_OPERATIONS:
            continue
        marks = layer.find("rt_info")
        if marks is None:
            marks = ElementTree.Element("rt_info")
            ports = next(index for index, part in enumerate(layer) if part.tag in ("input", "output"))
            layer.insert(ports, marks)
        ElementTree.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
    tree.write(path, encoding="utf-8", xml_declaration=True)
