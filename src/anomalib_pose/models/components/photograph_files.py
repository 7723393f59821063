# SPDX-License-Identifier: Apache-2.0
"""Loaders of the paths of photographs, in place of anomalib's loaders of a folder at a prediction."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from anomalib.data import PredictDataset
from torch.utils.data import DataLoader, Dataset

from anomalib_pose.data.listing import is_data, report_unread


class PhotographFiles(Dataset):
    """Files of photographs, which the model reads by itself; a batch is a list of paths.

    Args:
        paths: files of photographs.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self.paths = list(paths)

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        """Return one path."""
        return self.paths[index]


def replace_stock_loaders(trainer: Any) -> None:
    """Replace loaders of anomalib's ``PredictDataset`` by loaders of paths, in place.

    Its reader stops at an unreadable file without the file's name, and lists hidden files. The model reads the files
    instead.

    Args:
        trainer: Lightning's trainer at the start of a prediction.
    """
    source = getattr(getattr(trainer, "predict_loop", None), "_data_source", None)
    loaders = getattr(source, "instance", None)
    if source is None or not isinstance(loaders, DataLoader | list | tuple):
        return
    if isinstance(loaders, DataLoader):
        source.instance = _path_loader(loaders)
    else:
        source.instance = [_path_loader(loader) for loader in loaders]


def _path_loader(loader: Any) -> Any:
    """Return a loader of paths for a loader of a ``PredictDataset``; return any other loader unchanged."""
    dataset: Any = getattr(loader, "dataset", None)
    if type(dataset) is not PredictDataset or loader.batch_size is None:
        return loader
    paths = [Path(path) for path in dataset.image_filenames]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    report_unread(root)
    data = [path for path in paths if all(is_data(Path(part)) for part in path.relative_to(root).parts)]
    return DataLoader(PhotographFiles(data or paths), batch_size=loader.batch_size, collate_fn=list)


def is_path_batch(batch: Any) -> TypeGuard[list[Path]]:
    """Return whether a batch comes from the loaders of ``replace_stock_loaders``."""
    return isinstance(batch, list) and bool(batch) and all(isinstance(path, Path) for path in batch)
