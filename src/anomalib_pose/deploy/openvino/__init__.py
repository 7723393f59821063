# SPDX-License-Identifier: Apache-2.0
"""Export of a detector to ONNX and OpenVINO."""
