# SPDX-License-Identifier: Apache-2.0
"""Queries with reference views of a shape: reading them, items, batches, datamodules."""
