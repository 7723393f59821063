# SPDX-License-Identifier: Apache-2.0
"""Base of this package's datamodules: anomalib's datamodule with a test set that no split changes."""

from typing import ClassVar, Literal, get_args

from anomalib.data import AnomalibDataModule

ValSplit = Literal["same_as_test", "from_test", "from_train"]


class FixedTestDataModule(AnomalibDataModule):
    """Datamodule with the test set that the data set defines.

    It rejects anomalib's other values of ``val_split_mode``: ``none`` leaves anomalib without thresholds, and
    ``synthetic`` yields images alone, without poses, clouds or views.

    Args:
        train_batch_size: items in a training batch.
        eval_batch_size: items in a batch of validation, test and prediction.
        num_workers: processes that load items.
        val_split_mode: items that set the thresholds, one of ``val_split_modes``.
        val_split_ratio: fraction of the items that ``from_test`` and ``from_train`` take.
        seed: makes the choice of these items repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is not one of ``val_split_modes``, or a number is out of its range.
    """

    val_split_modes: ClassVar[tuple[str, ...]] = get_args(ValSplit)
    """Accepted values of ``val_split_mode``."""

    def __init__(
        self,
        train_batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        val_split_mode: str,
        val_split_ratio: float,
        seed: int | None,
    ) -> None:
        if str(getattr(val_split_mode, "value", val_split_mode)) not in self.val_split_modes:
            msg = f"val_split_mode should be one of {', '.join(self.val_split_modes)}, got {val_split_mode!r}."
            raise ValueError(msg)
        if min(train_batch_size, eval_batch_size) < 1 or num_workers < 0 or not 0 < val_split_ratio < 1:
            msg = (
                "train_batch_size and eval_batch_size should be 1 or more, num_workers 0 or more and val_split_ratio "
                f"in (0, 1), got {train_batch_size}, {eval_batch_size}, {num_workers} and {val_split_ratio}."
            )
            raise ValueError(msg)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            test_split_mode="from_dir",
            seed=seed,
        )

    def _create_test_split(self) -> None:
        """Keep the test set; anomalib would move normal training images to a test set without normal images."""
