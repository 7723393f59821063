# SPDX-License-Identifier: Apache-2.0
"""Static twins of pose, render, compare and scene: the same computations as graphs that ONNX and OpenVINO can run.

A graph has no branch and no tensor size that depends on the data, and every loop has a fixed number of steps. The
docstring of each module names its twin and the tolerance to which the tests compare the two.
"""
