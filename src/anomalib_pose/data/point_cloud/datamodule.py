# SPDX-License-Identifier: Apache-2.0
"""Base of the datamodules of rendered point clouds, which train on one category and test on others."""

import logging
from pathlib import Path
from typing import Any, ClassVar

from anomalib.data.utils import Split, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_pose.data.fixed_test_datamodule import FixedTestDataModule, ValSplit
from anomalib_pose.data.listing import data_folders
from anomalib_pose.data.point_cloud.dataset import CloudDataset
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings
from anomalib_pose.data.point_cloud.sources import CloudSample, CloudSource, RawSource, RenderedSource, is_rendered

logger = logging.getLogger(__name__)

REST = "rest"
"""Value of ``category`` that stands for all categories except the training category."""


class CloudDataModule(FixedTestDataModule):
    """Datamodule of ``<root>/<category>/test`` that trains on the labeled test part of another category.

    The folder of a category is either rendered, in the layout that PointAD published, or raw, in MVTec 3D-AD's layout.
    Raw clouds are rendered on loading.

    Args:
        root: folder of the data set; None for anomalib's folder of data sets.
        category: category to test on; ``rest`` for all categories except the training category.
        train_category: category to train on, or None to test only.
        train_root: folder of the data set of the training category; None for ``root``.
        size: width and height of the views in pixels.
        train_batch_size: clouds in a training batch.
        eval_batch_size: clouds in a batch of validation, test and prediction.
        num_workers: processes that load clouds.
        val_split_mode: clouds that set the thresholds: ``same_as_test``, ``from_test`` (clouds that are
            removed from the test set) or ``from_train`` (clouds that are removed from the training category).
        val_split_ratio: fraction of the clouds that ``from_test`` and ``from_train`` take.
        seed: makes the choice of these clouds, and the search for the supporting plane of raw clouds, repeatable.

    Raises:
        ValueError: if the training category, whose labels are used, is also the tested one; if ``val_split_mode``
            is invalid; or if it is ``from_train`` and there is no training category.
    """

    train_data: CloudDataset
    val_data: CloudDataset
    test_data: CloudDataset

    dataset_name: ClassVar[str]
    """Name of the data set, and of its folder where ``root`` is None."""
    source: ClassVar[str]
    """Where to download the data set."""

    def __init__(
        self,
        root: Path | str | None,
        category: str,
        train_category: str | None,
        train_root: Path | str | None = None,
        size: int = 336,
        train_batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        val_split_mode: ValSplit = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(train_batch_size, eval_batch_size, num_workers, val_split_mode, val_split_ratio, seed)
        if train_root is not None and train_category is None:
            msg = f"train_root={str(train_root)!r} needs a train_category, got None."
            raise ValueError(msg)
        self.root = Path(resolve_dataset_root(root, self.dataset_name)).absolute()
        self.train_root = self.root if train_root is None else Path(train_root).absolute()
        self.category = category
        self.train_category = train_category
        self.settings = RenderSettings(size)
        self.cache_dir: Path | None = None
        if category != REST and self._is_training_folder(self.root / category):
            msg = (
                f"Training on {category!r} uses the labels of its test part: test on another category, or on {REST!r} "
                "(all other categories); or set train_category to null where nothing is trained."
            )
            raise ValueError(msg)
        if train_category is None and str(getattr(val_split_mode, "value", val_split_mode)) == "from_train":
            msg = "val_split_mode 'from_train' needs a train_category."
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """Name of the root folder.

        anomalib names a result picture by the part of the image path after this name. If the path does not contain the
        name, it takes the last folder only. Photographs of all kinds lie in folders ``rgb``, and would then overwrite
        each other.
        """
        return self.root.name

    def prepare_data(self) -> None:
        """Check that the tested categories exist, and the training category where it is needed.

        Raises:
            FileNotFoundError: if a root does not exist.
            ValueError: if a category does not exist; the message lists the existing categories.
        """
        if self._may_train():
            _check_categories(self._training_folders(), "train_category")
        _check_categories(self._test_folders(), "category")

    def train_dataloader(self) -> Any:
        """Return the loader of the training category.

        Raises:
            ValueError: if there is no training category.
        """
        if self.train_category is None:
            msg = "There is nothing to train on: give a train_category, other than the tested one."
            raise ValueError(msg)
        if not hasattr(self, "train_data"):  # setup() prepared a test without training
            _check_categories(self._training_folders(), "train_category")
            self._set_up_training()
        return super().train_dataloader()

    def _setup(self, _stage: str | None = None) -> None:
        self.prepare_data()
        if self._may_train():
            self._set_up_training()
        self.test_data = self._dataset(self._test_folders(), Split.TEST)

    def _set_up_training(self) -> None:
        self.train_data = self._dataset(self._training_folders(), Split.TRAIN)

    def _dataset(self, folders: list[Path], split: Split) -> CloudDataset:
        samples: list[tuple[CloudSample, CloudSource]] = []
        for folder in folders:
            source = self._source_of(folder)
            samples += [(sample, source) for sample in source.samples(folder)]
        defective = sum(bool(int(sample.label)) for sample, _ in samples)
        names = ", ".join(folder.name for folder in folders)
        logger.info("%s: %d clouds of %s, %d with defects.", split.value, len(samples), names, defective)
        return CloudDataset(samples, split)

    def _source_of(self, folder: Path) -> CloudSource:
        """Return the reader of renderings if the folder has renderings, otherwise the reader of raw recordings."""
        if is_rendered(folder):
            return RenderedSource(self.settings.size)
        return RawSource(self.settings, seed=self.seed or 0, cache=self.cache_dir)

    def _may_train(self) -> bool:
        """Return whether a training category is given and needed; a test without training needs none."""
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
    return [path for path in data_folders(root) if (path / "test").is_dir()]


def _check_categories(folders: list[Path], setting: str) -> None:
    for folder in folders:
        if not folder.is_dir():
            categories = ", ".join(path.name for path in _categories(folder.parent)) or "none"
            msg = f"There is no category {folder.name!r} in {folder.parent}; there are: {categories}. Change {setting}."
            raise ValueError(msg)
