# SPDX-License-Identifier: Apache-2.0
"""Queries with reference views of their shape: file readers, items, batches, and the datamodule BrokenChairs."""
