# SPDX-License-Identifier: Apache-2.0
"""Posed images: file readers, items, batches, and the datamodules MAD, MIP and PosedFolder."""
