# SPDX-License-Identifier: Apache-2.0
"""Posed images: reading them, items, batches, datamodules."""
