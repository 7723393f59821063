# SPDX-License-Identifier: Apache-2.0
"""Measure Looking3D: seconds for each query, and learning curves.

    python tools/benchmark/looking3d.py time --views 20 --repeats 3 --json looking3d.json
    python tools/benchmark/looking3d.py train DATA --epochs 4 --json curve.json

``time`` compares the published form, which encodes the views again for every query and masks keys, with shapes that are
encoded once. The weights are random, which does not change the time. Objects cover a third of their images.

``train`` trains from random weights on a data set in BrokenChairs' layout with the settings of
``configs/looking3d_sample.yaml``, and prints the AUROC on unseen shapes during the training. Minutes are CPU time of
this process, without evaluations. Seconds are wall time and CPU time; CPU time hardly depends on other processes.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from timing import measure
from torch.utils.data import DataLoader

from anomalib_pose.data import BrokenChairs
from anomalib_pose.data.files import write_json
from anomalib_pose.models import Looking3D
from anomalib_pose.models.components.metrics import AUROC
from anomalib_pose.models.looking3d.metrics import BoxIoU
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape

console = Console()
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "looking3d_sample.yaml"
_LOSSES = ("alignment", "task")


def photographs(count: int, generator: torch.Generator) -> torch.Tensor:
    """Create images of noise on white (count, 3, 256, 256)."""
    images = torch.ones(count, 3, 256, 256)
    images[..., 50:210, 60:196] = 0.8 * torch.rand(count, 3, 160, 136, generator=generator)
    return images


def megabytes(shape: ReferenceShape) -> float:
    return sum(part.numel() * part.element_size() for part in shape if part is not None) / 1e6


@torch.inference_mode()
def compare_times(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time one query with each form of the reference shape, and print a table."""
    generator = torch.Generator().manual_seed(0)
    model = Looking3DModel().eval()
    query, views = photographs(1, generator), photographs(arguments.views, generator)[None]
    xyz = torch.rand(1, arguments.views, 32, 32, 3, generator=generator)
    whole = model.reference(views, xyz)
    compact = whole.compact(model.topk)
    seconds_by_form = {
        "as published": measure(lambda: model(query, model.reference(views, xyz), published=True), arguments.repeats),
        "as published, encoded views": measure(lambda: model(query, whole, published=True), arguments.repeats),
        "gathered, whole shape": measure(lambda: model(query, whole), arguments.repeats),
        "gathered, compact shape": measure(lambda: model(query, compact), arguments.repeats),
        "once for each shape": measure(lambda: model.reference(views, xyz).compact(model.topk), arguments.repeats),
    }
    difference = (model(query, compact).logit - model(query, whole, published=True).logit).abs().item()
    table = Table("", "CPU s", "wall s")
    for name, seconds in seconds_by_form.items():
        table.add_row(name, *(f"{seconds[key]:.2f}" for key in ("cpu_median", "wall_median")))
    console.print(table)
    sizes = {"whole": megabytes(whole), "compact": megabytes(compact)}
    console.print(
        f"A shape takes {sizes['compact']:.1f} MB, whole {sizes['whole']:.1f}; logits differ by {difference:.1e}."
    )
    return {"seconds": seconds_by_form, "megabytes": sizes, "logit_difference": difference}


class Curve(Callback):
    """AUROC on the test shapes during a training.

    Args:
        loader: loader of the test queries.
        every: number of steps between evaluations.
    """

    def __init__(self, loader: DataLoader, every: int) -> None:
        self.loader = loader
        self.every = every
        self.points: list[dict[str, float]] = []
        self.losses: list[tuple[float, float]] = []
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, model: Looking3D, *_: Any) -> None:
        """Record the losses, and evaluate at regular steps."""
        self.losses.append(tuple(float(trainer.callback_metrics[f"train_{name}_loss_step"]) for name in _LOSSES))
        if trainer.global_step % self.every == 0:
            self.evaluate(trainer.global_step, model)

    def on_train_end(self, trainer: Trainer, model: Looking3D) -> None:
        """Evaluate the final weights."""
        if trainer.global_step % self.every:
            self.evaluate(trainer.global_step, model)

    @torch.no_grad()
    def evaluate(self, step: int, model: Looking3D) -> None:
        """Add a point to the curve."""
        before = time.process_time()
        model.eval()
        model.on_test_start()
        metrics = [AUROC(fields=["pred_score", "gt_label"]), BoxIoU()]
        for batch in self.loader:
            scored = model.test_step(batch)
            scored.update(pred_label=scored.pred_score > 0.5)
            for metric in metrics:
                metric.update(scored)
        model.train()
        alignment, task = torch.tensor(self.losses[-self.every :]).mean(0).tolist()
        auroc, overlap = (float(metric.compute()) for metric in metrics)
        minutes = (before - self.start) / 60
        point = {"step": step, "minutes": minutes, "alignment": alignment, "task": task, "auroc": auroc, "iou": overlap}
        self.points.append(point)
        console.print(", ".join(f"{name} {value:.3f}" for name, value in point.items()))
        self.start += time.process_time() - before


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, print the points of the learning curve, and return them."""
    seed_everything(arguments.seed)
    settings = yaml.safe_load(_CONFIG.read_text())
    data = BrokenChairs(**{**settings["data"]["init_args"], "root": arguments.data, "num_workers": 0})
    data.setup()
    model = Looking3D(**settings["model"]["init_args"], visualizer=False)
    curve = Curve(data.test_dataloader(), arguments.every)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=arguments.epochs, accelerator="cpu", limit_val_batches=0, callbacks=[curve], **quiet)
    trainer.fit(model, train_dataloaders=data.train_dataloader())
    return {"settings": settings, "curve": curve.points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    times = commands.add_parser("time", help="seconds for each query")
    times.add_argument("--views", type=int, default=20, help="reference views of the shape")
    times.add_argument("--repeats", type=int, default=3, help="number of runs; the median is reported")
    times.set_defaults(run=compare_times)
    learning = commands.add_parser("train", help="learning curve on unseen shapes")
    learning.add_argument("data", type=Path, help="data set, as anomalib-pose sample chairs writes it")
    learning.add_argument("--epochs", type=int, default=4, help="length of the training")
    learning.add_argument("--every", type=int, default=100, help="steps between evaluations")
    learning.add_argument("--seed", type=int, default=0, help="random seed of weights, order and augmentation")
    learning.set_defaults(run=train)
    for command in (times, learning):
        command.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
        command.add_argument("--json", type=Path, help="output file of the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = arguments.run(arguments)
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
