# SPDX-License-Identifier: Apache-2.0
"""Export of detectors to ONNX and OpenVINO, and the precision in which OpenVINO runs them."""
