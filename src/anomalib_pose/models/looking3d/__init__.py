# SPDX-License-Identifier: Apache-2.0
"""Looking3D (Bhunia et al., CVPR 2024)."""
