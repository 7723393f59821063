# SPDX-License-Identifier: Apache-2.0
"""Time a training step of PointAD's prompts on cached features, and estimate the training of a category.

    python tools/benchmark/point_ad_prompts.py --threads 1 --json prompts.json

Weights and features are random, which does not change the time. The text tower and all sizes are those of the model.
Seconds are wall time and CPU time of this process; CPU time hardly depends on other processes. In the published program
the text tower reads 77 tokens, and the image tower runs in every step too; the image tower is not timed here.
"""

import argparse
import math
from pathlib import Path

import open_clip
import torch
from rich.console import Console
from rich.table import Table
from timing import measure
from torch.nn import functional

from anomalib_pose.data.files import write_json
from anomalib_pose.models.point_ad.losses import CloudTargets, hybrid_loss
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipFeatures
from anomalib_pose.models.point_ad.text import TextTower, direction, end_positions
from anomalib_pose.models.point_ad.training import prompt_loss, prompt_optimizer


def text_tower(model: str) -> tuple[TextTower, int, int, int]:
    """Create a model's text tower; also return image size, patches along a side, and width of the features."""
    configuration = open_clip.get_model_config(model)
    size, patch = (configuration["vision_cfg"][key] for key in ("image_size", "patch_size"))
    configuration["vision_cfg"] = {"layers": 1, "width": 64, "patch_size": patch, "image_size": patch}
    clip = open_clip.CLIP(**configuration).requires_grad_(requires_grad=False)
    return TextTower(clip), size, size // patch, configuration["embed_dim"]


def sample(
    objects: int, views: int, size: int, patches: int, width: int, fill: float, generator: torch.Generator
) -> tuple[ClipFeatures, CloudTargets]:
    """Create random objects; a fraction of the cells holds a point, and about half of the views show each point."""
    cells = size * size
    valid = torch.rand(objects, cells, generator=generator) < fill
    features = ClipFeatures(
        functional.normalize(torch.randn(objects, views, width, generator=generator), dim=-1),
        functional.normalize(torch.randn(objects, views, patches**2, width, generator=generator), dim=-1),
    )
    targets = CloudTargets(
        labels=torch.arange(objects) % 2,
        view_masks=torch.rand(objects, views, size, size, generator=generator) < 0.02,
        points=valid & (torch.rand(objects, cells, generator=generator) < 0.02),
        valid=valid,
        pixels=torch.randint(0, size, (objects, views, cells, 2), generator=generator, dtype=torch.int16),
        visible=(torch.rand(objects, views, cells, generator=generator) < 0.5) & valid[:, None],
    )
    return features.to(torch.float16), targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336", help="name of a model in open_clip")
    parser.add_argument("--objects", type=int, default=4, help="objects in one step")
    parser.add_argument("--views", type=int, default=9, help="views of each object")
    parser.add_argument("--fill", type=float, default=0.3, help="fraction of the grid's cells that hold a point")
    parser.add_argument("--class-size", type=int, default=131, help="objects of the training category (cookie: 131)")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of a training")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="output file of the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    text, size, patches, width = text_tower(arguments.model)
    prompts = PromptLearner(text)
    optimizer = prompt_optimizer(prompts)
    generator = torch.Generator().manual_seed(0)
    features, targets = sample(arguments.objects, arguments.views, size, patches, width, arguments.fill, generator)
    fixed = torch.randn(width, generator=generator).requires_grad_()
    padding = text.embed(torch.zeros(2, len(text.positional_embedding) - prompts.ids.shape[1], dtype=torch.long))

    def whole_text() -> None:
        tokens = torch.cat([prompts.tokens(text), padding], 1)
        text(tokens, end_positions(prompts.ids), prompts.deep).sum().backward()

    def losses() -> None:
        hybrid_loss(features, fixed, targets).total.backward()

    def step() -> None:
        optimizer.zero_grad()
        prompt_loss(text, prompts, features, targets).total.backward()
        optimizer.step()

    seconds_by_part = {
        "text tower, as published": measure(whole_text, arguments.repeats),
        "text tower, to the ends": measure(lambda: direction(prompts(text)).sum().backward(), arguments.repeats),
        "losses": measure(losses, arguments.repeats),
        "whole step": measure(step, arguments.repeats),
    }
    table = Table("forward and backward", "CPU s", "wall s")
    for name, seconds in seconds_by_part.items():
        table.add_row(name, *(f"{seconds[key]:.2f}" for key in ("cpu_median", "wall_median")))
    console = Console()
    console.print(table)
    steps = math.ceil(arguments.class_size / arguments.objects) * arguments.epochs
    minutes = {key: steps * seconds / 60 for key, seconds in seconds_by_part["whole step"].items()}
    console.print(
        f"A category of {arguments.class_size} objects takes {steps} steps in {arguments.epochs} epochs: "
        f"{minutes['cpu_median']:.0f} minutes of CPU time, {minutes['wall_median']:.0f} of the wall."
    )
    if arguments.json:
        numbers = {"seconds": seconds_by_part, "steps": steps, "minutes": minutes}
        write_json(arguments.json, numbers)


if __name__ == "__main__":
    main()
