# SPDX-License-Identifier: Apache-2.0
"""Posed images as anomalib items, batches and datamodules."""

from anomalib_pose.data.dataclasses import PoseBatch, PoseItem
from anomalib_pose.data.mad import MAD
from anomalib_pose.data.posed_dataset import PosedDataset
from anomalib_pose.data.posed_folder import PosedFolder
from anomalib_pose.data.transforms_json import PosedFrame, read_transforms

__all__ = ["MAD", "PoseBatch", "PoseItem", "PosedDataset", "PosedFolder", "PosedFrame", "read_transforms"]
