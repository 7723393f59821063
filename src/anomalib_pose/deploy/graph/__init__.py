# SPDX-License-Identifier: Apache-2.0
"""Static tensor graphs that compute what pose, render, compare and scene compute."""
