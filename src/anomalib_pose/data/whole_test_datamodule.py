# SPDX-License-Identifier: Apache-2.0
"""anomalib's datamodule without the ways of splitting that would spoil our data."""

from typing import ClassVar

from anomalib.data import AnomalibDataModule


class WholeTestDataModule(AnomalibDataModule):
    """Datamodule whose test set is complete as it is.

    Args:
        train_batch_size: items in a training batch.
        eval_batch_size: items in a batch of validation, test and prediction.
        num_workers: processes that load items.
        val_split_mode: ``same_as_test``, ``from_test`` or ``from_train``.
        val_split_ratio: share of the items that ``from_test`` and ``from_train`` take.
        seed: makes that choice repeatable.

    Raises:
        ValueError: if ``val_split_mode`` is another: ``none`` leaves the host without thresholds, and the host's
            synthetic defects are images alone.
    """

    val_split_modes: ClassVar[tuple[str, ...]] = ("same_as_test", "from_test", "from_train")

    def __init__(
        self,
        train_batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        val_split_mode: str = "same_as_test",
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        if str(getattr(val_split_mode, "value", val_split_mode)) not in self.val_split_modes:
            msg = f"val_split_mode should be one of {', '.join(self.val_split_modes)}, got {val_split_mode!r}."
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
        """Keep the test set: the host would take normal images from the training set where it has none."""
