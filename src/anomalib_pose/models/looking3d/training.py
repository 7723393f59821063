# SPDX-License-Identifier: Apache-2.0
"""Training of Looking3D: two losses, one optimizer, and its learning-rate schedules."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from anomalib.data import Batch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anomalib_pose.models.looking3d.losses import Alignment, task_loss
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape

Schedule = Literal["cosine", "step"]
"""Cosine decay to zero; division by ten every 20 epochs (the paper's)."""

_STEP_EPOCHS = 20


class TwoLossTraining:
    """Training of a Lightning module that owns a ``Looking3DModel`` and the key branch of its alignment loss."""

    model: Looking3DModel
    alignment: Alignment
    learning_rate: float
    beta1: float
    schedule: Schedule
    warmup_steps: int
    automatic_optimization: bool
    random_weights: bool
    trainer: Any
    parameters: Callable[[], Iterator[nn.Parameter]]
    optimizers: Callable[[], Any]
    lr_schedulers: Callable[[], Any]
    manual_backward: Callable[[Tensor], None]
    log: Callable[..., None]

    def on_train_start(self) -> None:
        """Record that the weights are trained from now on."""
        self.random_weights = False

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:
        """Create Adam and the schedule, which advances with every batch.

        Raises:
            ValueError: if the schedule is cosine and the number of epochs is unknown.
        """
        epochs = self.trainer.max_epochs
        if self.schedule == "cosine" and (epochs is None or epochs < 1):
            msg = f"The cosine schedule needs the number of epochs: set max_epochs to 1 or more, it is {epochs}."
            raise ValueError(msg)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = Adam(parameters, lr=self.learning_rate, betas=(self.beta1, 0.999))
        self.trainer.fit_loop.setup_data()
        epoch = max(1, math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches))

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
            if self.schedule == "step":
                return warm * float(0.1 ** (step // (_STEP_EPOCHS * epoch)))
            return warm * (1 + math.cos(math.pi * min(1.0, step / (epochs * epoch)))) / 2

        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]

    def alignment_loss(self, batch: Batch) -> Tensor:
        """Update the moving averages, and compute the loss of the descriptors (section 4.2); a scalar.

        Args:
            batch: batch with ``image``, ``pair_images`` and ``pair_points``.
        """
        network = self.model
        self.alignment.update(network.encoder, network.projector)
        return self.alignment(
            network.encoder, network.projector, batch.image, batch.pair_images, batch.pair_points.long()
        )

    def task_loss(self, batch: Batch) -> Tensor:
        """Compute the loss of labels and boxes (section 4.4); a scalar.

        Queries and views are encoded in one batch, so that they share the statistics of batch normalization. Queries of
        one shape share the views of the first of these queries, which are encoded once.

        Args:
            batch: batch with ``image``, ``reference_images``, ``reference_xyz``, ``gt_label``, ``box`` and, where
                known, ``shape_id``.
        """
        names = batch.shape_id or range(len(batch.image))
        firsts = {name: index for index, name in reversed(list(enumerate(names)))}
        shape_rows = list(firsts.values())
        shape_of_query = [shape_rows.index(firsts[name]) for name in names]
        views = batch.reference_images[shape_rows]
        normalize = self.model.normalize
        features = self.model.encoder(torch.cat([normalize(batch.image), normalize(views).flatten(0, 1)]))
        query_features, view_features = features.split([len(batch.image), views.shape[0] * views.shape[1]])
        view_features = view_features.unflatten(0, views.shape[:2])
        shapes = self.model.reference(views, batch.reference_xyz[shape_rows], view_features)
        per_query = ReferenceShape(shapes.descriptors[shape_of_query], shapes.context[shape_of_query])
        output = self.model(batch.image, per_query, query_features)
        return task_loss(output.logit, output.box, batch.gt_label, batch.box)

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the sum of both losses, or take one optimizer step for each of them."""
        del args, kwargs
        if self.automatic_optimization:
            losses = {"alignment": self.alignment_loss(batch), "task": self.task_loss(batch)}
            self._log_losses(losses, len(batch.image))
            return losses["alignment"] + losses["task"]
        optimizer = self.optimizers()
        for name, loss_of in (("alignment", self.alignment_loss), ("task", self.task_loss)):
            optimizer.zero_grad()
            loss = loss_of(batch)
            self.manual_backward(loss)
            optimizer.step()
            self._log_losses({name: loss}, len(batch.image))
        self.lr_schedulers().step()
        return None

    def _log_losses(self, losses: dict[str, Tensor], count: int) -> None:
        """Log losses by name."""
        for name, loss in losses.items():
            self.log(f"train_{name}_loss", loss.detach(), on_epoch=True, prog_bar=True, batch_size=count)
