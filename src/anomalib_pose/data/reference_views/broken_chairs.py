# SPDX-License-Identifier: Apache-2.0
"""BrokenChairs: images of chairs with defective parts, and views of the defect-free shape (Looking3D, CVPR 2024)."""

import logging
from pathlib import Path
from typing import Literal, get_args

from anomalib.data.utils import Split
from anomalib.utils.path import resolve_dataset_root
from torch.utils.data import DataLoader

from anomalib_pose.data.fixed_test_datamodule import FixedTestDataModule
from anomalib_pose.data.reference_views.broken_chairs_files import count_summary, find_queries, split_queries
from anomalib_pose.data.reference_views.dataset import ReferenceViewDataset
from anomalib_pose.data.reference_views.shape_sampler import ShapeSampler

logger = logging.getLogger(__name__)

BrokenChairsValSplit = Literal["from_dir", "same_as_test", "from_test"]


class BrokenChairs(FixedTestDataModule):
    """BrokenChairs-180K, its first release, and any data set in their layouts.

    The release has in ``<root>``:

    * ``images/<folder>/render_<shape>_...png``: queries on white, anomalous if ``anomaly`` is in their names;
    * ``annotations/<folder>/info_<shape>_...json``: the box of an anomaly, ``2d_bbox`` (x, y, width, height in an
      image of 512 x 512); optionally ``mask_new_...png`` and ``mask_old_...png`` beside it;
    * ``shapes/shape_<shape>/mv_images``: the reference views of the defect-free shape;
    * ``split.json``: the shapes of each split.

    The first release has ``normals/<shape>/{renders,rendered_mesh}`` and ``anomalies/A<shape>_<type>/
    {renders,annotation}`` instead; shapes that its ``split.json`` does not name are for training. Training images
    include anomalies, with labels.

    Queries are resized to 256 pixels; a crop of 224 pixels is enlarged to 256 again. In training, the crop and the
    reference views are random; otherwise the crop is central, and the views are the same each time. The paper's
    tests choose both at random, too.

    The data set is not downloaded: its authors offer it at https://huggingface.co/datasets/ankankbhunia/brokenchairs180k
    (CC BY-NC-SA 4.0).

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        train_views: number of random reference views of a training image.
        eval_views: number of reference views of an image in evaluation; the views are distinct and spread over all
            views of the shape.
        flip: mirror half of the training queries left to right, but not their reference views. Switch it off for
            shapes that differ from their mirror image.
        light: change brightness and contrast of a fifth of the training queries.
        queries_per_shape: training images of one shape that follow each other. Images of one shape in a batch share
            their reference views, which Looking3D encodes once: with 4 images a training step takes half as long.
        train_batch_size: images in a training batch.
        eval_batch_size: images in a batch of validation, test and prediction.
        num_workers: processes that load images.
        val_split_mode: images that set the thresholds: ``from_dir`` (the split ``val``, or the test set if there is
            no such split), ``same_as_test`` or ``from_test`` (images that are removed from the test set).
        val_split_ratio: fraction of the test images that ``from_test`` takes.
        seed: makes the choice of these images repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is invalid, or ``train_views``, ``eval_views`` or
            ``queries_per_shape`` is below 1.

    Example:
        >>> datamodule = BrokenChairs(root="./datasets/BrokenChairs")
        >>> datamodule.setup()
        >>> next(iter(datamodule.train_dataloader())).reference_images.shape
        torch.Size([6, 5, 3, 256, 256])
    """

    val_split_modes = get_args(BrokenChairsValSplit)

    def __init__(
        self,
        root: Path | str | None = "./datasets/BrokenChairs",
        train_views: int = 5,
        eval_views: int = 20,
        flip: bool = True,
        light: bool = True,
        queries_per_shape: int = 1,
        train_batch_size: int = 6,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        val_split_mode: BrokenChairsValSplit = "from_dir",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        if min(train_views, eval_views, queries_per_shape) < 1:
            msg = (
                "train_views, eval_views and queries_per_shape should be 1 or more, "
                f"got {train_views}, {eval_views} and {queries_per_shape}."
            )
            raise ValueError(msg)
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)
        self.root = Path(resolve_dataset_root(root, "BrokenChairs"))
        self.train_views = train_views
        self.eval_views = eval_views
        self.flip = flip
        self.light = light
        self.queries_per_shape = queries_per_shape

    def prepare_data(self) -> None:
        """Check that the folder of the data set exists.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        if not self.root.is_dir():
            msg = (
                f"There is no folder {self.root}: download BrokenChairs from "
                "https://huggingface.co/datasets/ankankbhunia/brokenchairs180k and give its folder as root, or make a "
                "sample with anomalib-pose sample chairs."
            )
            raise FileNotFoundError(msg)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training images, in random runs of ``queries_per_shape`` images of one shape."""
        data = self.train_data
        return DataLoader(
            data,
            batch_size=self.train_batch_size,
            sampler=ShapeSampler([query.shape_id for query in data.samples["query"]], self.queries_per_shape),
            num_workers=self.num_workers,
            collate_fn=data.collate_fn,
        )

    def _setup(self, _stage: str | None = None) -> None:
        """Find queries, annotations and views, and log their numbers in each split."""
        self.prepare_data()
        splits = split_queries(self.root, find_queries(self.root))
        for name, queries in splits.items():
            logger.info("BrokenChairs, %s: %s.", name, count_summary(queries))
        self.train_data = ReferenceViewDataset(
            splits["train"], Split.TRAIN, self.train_views, training=True, flip=self.flip, light=self.light
        )
        self.test_data = ReferenceViewDataset(splits["test"], Split.TEST, self.eval_views)
        if self.val_split_mode == "from_dir":
            validation = splits["val"]
            if not validation:
                logger.warning("%s names no shapes for validation: thresholds are chosen on the test set.", self.root)
            self.val_data = ReferenceViewDataset(validation or splits["test"], Split.VAL, self.eval_views)
