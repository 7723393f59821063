# SPDX-License-Identifier: Apache-2.0
"""What the datamodules of rendered clouds share: training on one category, testing on others."""

import logging
from pathlib import Path
from typing import Any, ClassVar

from anomalib.data.utils import Split, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_pose.data.point_cloud.dataset import CloudDataset
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings
from anomalib_pose.data.point_cloud.sources import CloudSample, CloudSource, RawSource, RenderedSource, is_rendered
from anomalib_pose.data.whole_test_datamodule import WholeTestDataModule

logger = logging.getLogger(__name__)

REST = "rest"
"""The category that stands for all but the training category."""


class CloudDataModule(WholeTestDataModule):
    """Datamodule of ``<root>/<category>/test`` that trains on the labeled test part of another category.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all of the data set but the training category.
        train_category: category to train on, or None to test only.
        train_root: folder of the data set of the training category; None for the tested one.
        settings: how raw clouds are drawn, and the size that renderings have to have.
        cache_dir: folder that keeps drawn clouds; None to draw them each time.
        train_batch_size: clouds in a training batch.
        eval_batch_size: clouds in a batch of validation, test and prediction.
        num_workers: processes that load clouds.
        val_split_mode: ``same_as_test``, ``from_test`` or ``from_train``.
        val_split_ratio: share of the clouds that ``from_test`` and ``from_train`` take.
        seed: makes that choice, and the preparation of raw clouds, repeatable.

    Raises:
        ValueError: if the training category is the tested one, whose labels it would see, or ``val_split_mode`` is
            another, or needs a training category that is not there.
    """

    train_data: CloudDataset
    val_data: CloudDataset
    test_data: CloudDataset

    dataset_name: ClassVar[str]
    """Name of the data set, which is also its folder's where no root is given."""
    source: ClassVar[str]
    """Where the data set can be had."""

    def __init__(
        self,
        root: Path | str | None,
        category: str,
        train_category: str | None,
        train_root: Path | str | None,
        settings: RenderSettings,
        cache_dir: Path | str | None,
        train_batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        val_split_mode: str,
        val_split_ratio: float,
        seed: int | None,
    ) -> None:
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)
        self.root = Path(resolve_dataset_root(root, self.dataset_name)).absolute()
        self.train_root = self.root if train_root is None else Path(train_root).absolute()
        self.category = category
        self.train_category = train_category
        self.settings = settings
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        if category != REST and self._is_training_folder(self.root / category):
            msg = (
                f"Training on {category!r} uses the labels of its test part: test on another category, or on {REST!r}, "
                "which is all others; or give train_category null where nothing is trained."
            )
            raise ValueError(msg)
        if train_category is None and str(getattr(val_split_mode, "value", val_split_mode)) == "from_train":
            msg = "val_split_mode 'from_train' needs a train_category."
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """Name of the root folder.

        The host names its pictures by what comes after this name in an image's path, and by one folder alone where the
        path has no such name: photographs of all kinds lie in folders ``rgb``, and would overwrite each other.
        """
        return self.root.name

    def prepare_data(self) -> None:
        """Check that the categories are there, that of training where there is training.

        Raises:
            FileNotFoundError: if a root is not there.
            ValueError: if a category is not; those that are there are listed.
        """
        _check_categories((self._training_folders() if self._may_train() else []) + self._test_folders())

    def train_dataloader(self) -> Any:
        """Loader of the training category.

        Raises:
            ValueError: if there is none.
        """
        if self.train_category is None:
            msg = "There is nothing to train on: give a train_category, other than the tested one."
            raise ValueError(msg)
        if not hasattr(self, "train_data"):  # set up for a test
            self._set_up_training()
        return super().train_dataloader()

    def _setup(self, _stage: str | None = None) -> None:
        self.prepare_data()
        if self._may_train():
            self._set_up_training()
        self.test_data = self._dataset(self._test_folders(), Split.TEST)

    def _set_up_training(self) -> None:
        _check_categories(self._training_folders())
        self.train_data = self._dataset(self._training_folders(), Split.TRAIN)

    def _dataset(self, folders: list[Path], split: Split) -> CloudDataset:
        found: list[tuple[CloudSample, CloudSource]] = []
        for folder in folders:
            source = self._source_of(folder)
            found += [(sample, source) for sample in source.samples(folder)]
        bad = sum(bool(int(sample.label)) for sample, _ in found)
        names = ", ".join(folder.name for folder in folders)
        logger.info("%s: %d clouds of %s, %d with defects.", split.value, len(found), names, bad)
        return CloudDataset(found, split)

    def _source_of(self, folder: Path) -> CloudSource:
        """Renderings where there are some, raw recordings elsewhere."""
        if is_rendered(folder):
            return RenderedSource(self.settings.size)
        return RawSource(self.settings, seed=self.seed or 0, cache=self.cache_dir)

    def _may_train(self) -> bool:
        """Whether a category to train on is named and needed: a test alone does without."""
        testing = self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING
        return self.train_category is not None and (not testing or self.val_split_mode == ValSplitMode.FROM_TRAIN)

    def _is_training_folder(self, folder: Path) -> bool:
        training = self.train_category
        return training is not None and folder.resolve() == (self.train_root / training).resolve()

    def _training_folders(self) -> list[Path]:
        self._check_root(self.train_root)
        return [] if self.train_category is None else [self.train_root / self.train_category]

    def _test_folders(self) -> list[Path]:
        self._check_root(self.root)
        if self.category != REST:
            return [self.root / self.category]
        folders = [folder for folder in _categories(self.root) if not self._is_training_folder(folder)]
        if not folders:
            msg = f"There are no categories in {self.root} to test on besides the training one, {self.train_category}."
            raise ValueError(msg)
        return folders

    def _check_root(self, root: Path) -> None:
        if not root.is_dir():
            msg = (
                f"There is no folder {root}: download {self.dataset_name} from {self.source} and give the folder with "
                "its categories."
            )
            raise FileNotFoundError(msg)


def _categories(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if (path / "test").is_dir())


def _check_categories(folders: list[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            found = ", ".join(path.name for path in _categories(folder.parent)) or "none"
            msg = f"There is no category {folder.name!r} in {folder.parent}; there are: {found}."
            raise ValueError(msg)
