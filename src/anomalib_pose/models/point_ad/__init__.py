# SPDX-License-Identifier: Apache-2.0
"""PointAD: zero-shot anomalies of clouds from drawn views (Zhou et al., NeurIPS 2024)."""
