# SPDX-License-Identifier: Apache-2.0
"""A user's own object: posed photographs with a ``transforms.json`` or a COLMAP model, and queries."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split, ValSplitMode
from torch.utils.data import DataLoader

from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.listing import data_folders, image_files
from anomalib_pose.data.posed.colmap import MODEL_FOLDERS, find_colmap, read_colmap
from anomalib_pose.data.posed.datamodule import PosedDataModule, frames_with_masks, labeled_images, read_true_poses
from anomalib_pose.data.posed.dataset import PosedDataset, PosedSample, query_frame
from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms
from anomalib_pose.data.posed.transforms_split import find_transforms

logger = logging.getLogger(__name__)


class PosedFolder(PosedDataModule):
    """Photographs with poses, from Blender, nerfstudio, instant-ngp or COLMAP, and queries of the same object.

    ``<root>/transforms.json`` names the training images, their poses (OpenGL axes), intrinsics, and masks of the
    object if there are any; ``transforms_train.json`` takes its place where it is missing. Without these files, the
    COLMAP model with most images in ``sparse`` or ``colmap/sparse`` of ``root`` is read (extra
    ``anomalib-pose[colmap]``), with images in ``images``; their alpha channel is the mask of the object. Queries
    come from one of two places:

    * without ``query_dir``, every n-th training image is held out as a good query with its true pose;
    * with ``query_dir``, from that folder: from its subfolders ``good`` and one for each kind of defect, or directly
      from the folder if their labels are unknown. They have the intrinsics of the training images, and no poses. True
      poses of queries inside ``root`` are read from ``<root>/test_transforms.json``, ``<root>/transforms_test.json``
      or ``_hidden/<name>.json`` beside ``root``, where one of them exists; they serve evaluation alone.

    Queries without labels can be predicted, not tested; every n-th training image then sets the threshold, and
    ``val_split_mode`` does not apply. Without ``query_dir`` all queries are good: pose errors and false alarms are
    meaningful, AUROC is not.

    See ``PosedDataModule`` for the other arguments.

    Args:
        root: folder with ``transforms.json``, or with ``images`` and a COLMAP model.
        query_dir: folder of queries, absolute or inside ``root``; None to hold out training images.
        mask_dir: folder of the defects' masks, absolute or inside ``root``: the mask of ``<defect>/<name>.jpg`` is
            ``<defect>/<name>_mask.png`` or ``<defect>/<name>.png``. None if there are no masks.
        holdout_every: every n-th image of the file (of a COLMAP model: by name), from the first, is held out; not
            used with queries that have labels.
        image_size: longer side of the images in pixels; None to keep the stored size. Images whose aspect differs
            slightly are stretched to the most common size; portrait and landscape images of one set are padded to one
            size. Image, masks and intrinsics are changed together.
        white_background: paint the background white where an image has a mask of the object.

    Raises:
        ValueError: if ``holdout_every`` is below 2, ``mask_dir`` is given without ``query_dir``, or
            ``val_split_mode`` is invalid.
    """

    val_split_mode: ValSplitMode

    def __init__(
        self,
        root: Path | str,
        query_dir: Path | str | None = None,
        mask_dir: Path | str | None = None,
        holdout_every: int = 8,
        image_size: int | None = None,
        white_background: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if holdout_every < 2:
            msg = f"holdout_every should be 2 or more, so that images are left to train on, got {holdout_every}."
            raise ValueError(msg)
        if mask_dir is not None and query_dir is None:
            msg = f"mask_dir ({mask_dir}) has the masks of queries: give query_dir too."
            raise ValueError(msg)
        self.root = Path(root)
        self.category = self.root.resolve().name
        self.query_dir = None if query_dir is None else self.root / query_dir
        self.mask_dir = None if mask_dir is None else self.root / mask_dir
        self.holdout_every = holdout_every
        self.image_size = image_size
        self.white_background = white_background
        self._labeled_val_split_mode = self.val_split_mode

    def prepare_data(self) -> None:
        """Check that the folders exist.

        Raises:
            FileNotFoundError: if one does not exist.
        """
        for folder in (self.root, self.query_dir, self.mask_dir):
            if folder is not None and not folder.is_dir():
                msg = f"There is no folder {folder}."
                raise FileNotFoundError(msg)

    def _setup(self, _stage: str | None = None) -> None:
        """Read the training images and the queries."""
        self.prepare_data()
        frames = frames_with_masks(self._training_frames())
        query_format = QueryFormat.of_frames(frames, self.image_size, white_background=self.white_background)
        self.val_split_mode = self._labeled_val_split_mode
        if self.query_dir is None:
            frames, held_out = self._hold_out(frames)
            queries = [PosedSample(frame, LabelName.NORMAL) for frame in held_out]
        else:
            queries = self._queries(self.query_dir, query_format)
            if queries[0].label == LabelName.UNKNOWN:
                frames, held_out = self._hold_out(frames)
                good = [PosedSample(frame, LabelName.NORMAL) for frame in held_out]
                self.val_data = self._dataset(good, Split.VAL, query_format)
                self.val_split_mode = ValSplitMode.FROM_DIR
        self.train_data = self._dataset([PosedSample(frame) for frame in frames], Split.TRAIN, query_format)
        self.test_data = self._dataset(queries, Split.TEST, query_format)

    def _training_frames(self) -> list[PosedFrame]:
        """Read the posed images of ``transforms.json``, or of the COLMAP model."""
        path = find_transforms(self.root)
        if path is not None:
            return read_transforms(path)
        model = find_colmap(self.root)
        if model is None:
            msg = (
                f"There is no transforms.json in {self.root}, and no COLMAP model in its {', '.join(MODEL_FOLDERS)}: "
                "expected the camera poses there."
            )
            raise FileNotFoundError(msg)
        return read_colmap(model, self.root / "images")

    def _dataset(self, samples: list[PosedSample], split: Split, query_format: QueryFormat) -> PosedDataset:
        return PosedDataset(samples, split, query_format, segmentation=self.mask_dir is not None)

    def _hold_out(self, frames: list[PosedFrame]) -> tuple[list[PosedFrame], list[PosedFrame]]:
        """Split frames into training frames and held-out frames; every n-th frame is held out."""
        if len(frames) < 2:
            msg = f"{self.root} has one posed image: holding one out leaves none to train on."
            raise ValueError(msg)
        training = [frame for index, frame in enumerate(frames) if index % self.holdout_every]
        return training, frames[:: self.holdout_every]

    def _queries(self, folder: Path, query_format: QueryFormat) -> list[PosedSample]:
        """Read the queries of a folder; their camera is that of the training images."""
        unlabeled = image_files(folder)
        kinds = [path for path in data_folders(folder) if path != self.mask_dir and image_files(path)]
        if unlabeled and kinds:
            msg = (
                f"The images of {folder} lie partly in it, {unlabeled[0].name} for example, and partly in subfolders, "
                f"{kinds[0].name} for example: put all images into subfolders 'good' and kinds of defects, or no image."
            )
            raise ValueError(msg)
        if unlabeled and self.mask_dir is not None:
            msg = f"mask_dir ({self.mask_dir}) needs queries in subfolders 'good' and kinds of defects of {folder}."
            raise ValueError(msg)
        if kinds:
            images = labeled_images(folder, self.mask_dir)
        else:
            images = [(path, LabelName.UNKNOWN, None) for path in unlabeled]
        if not images:
            msg = f"There are no queries in {folder}: expected images in it or in its subfolders."
            raise FileNotFoundError(msg)
        root = self.root.resolve()
        poses = {root / name: pose for name, pose in read_true_poses(root).items()}
        queries = []
        for path, label, mask in images:
            frame = query_frame(path, *image_size(path), query_format)
            queries.append(PosedSample(replace(frame, camera_to_world=poses.get(path.resolve())), label, mask))
        return queries

    def test_dataloader(self) -> DataLoader:
        """Return the loader of labeled queries.

        Raises:
            ValueError: if the queries have no labels.
        """
        if not (self.test_data.has_normal or self.test_data.has_anomalous):
            msg = (
                f"The queries in {self.query_dir} have no labels, so they can be predicted but not tested: sort them "
                "into subfolders 'good' and kinds of defects, or call predict."
            )
            raise ValueError(msg)
        if not self.test_data.has_anomalous:
            logger.warning(
                "All queries of %s are good: AUROC and similar metrics mean nothing, the false alarms are valid.",
                self.root,
            )
        return super().test_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of all queries, with labels or without."""
        return super().test_dataloader()
