# SPDX-License-Identifier: Apache-2.0
"""Rendered point clouds: reading them, items, batches, datamodules."""
