# SPDX-License-Identifier: Apache-2.0
"""Time Looking3D's queries as published, and with what is computed once a shape.

    python tools/benchmark/looking3d.py --views 20 --repeats 3 --json looking3d.json

The weights are random, which takes as long as published ones. Objects cover a third of their images. Seconds are those
of the wall and of this process's CPU time, which hardly depends on what else is running. As published, every query
encodes the views again and masks the keys that a cell may not attend to.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape


def photographs(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise on white."""
    images = torch.ones(count, 3, 256, 256)
    images[..., 50:210, 60:196] = 0.8 * torch.rand(count, 3, 160, 136, generator=generator)
    return images


def measure(function: Callable[[], object], repeats: int) -> dict[str, float]:
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        start_cpu, start_wall = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - start_cpu)
        wall.append(time.perf_counter() - start_wall)
    return {"cpu_median": statistics.median(cpu), "wall_median": statistics.median(wall)}


def megabytes(shape: ReferenceShape) -> float:
    return sum(part.numel() * part.element_size() for part in shape if part is not None) / 1e6


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=20, help="reference views of the shape")
    parser.add_argument("--repeats", type=int, default=3, help="runs that the median is taken of")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Looking3DModel().eval()
    query, views = photographs(1, generator), photographs(arguments.views, generator)[None]
    xyz = torch.rand(1, arguments.views, 32, 32, 3, generator=generator)
    whole = model.reference(views, xyz)
    compact = whole.compact(model.topk)
    found = {
        "as published": measure(lambda: model(query, model.reference(views, xyz), published=True), arguments.repeats),
        "as published, views encoded before": measure(lambda: model(query, whole, published=True), arguments.repeats),
        "gathered, whole shape": measure(lambda: model(query, whole), arguments.repeats),
        "gathered, compact shape": measure(lambda: model(query, compact), arguments.repeats),
        "once a shape": measure(lambda: model.reference(views, xyz).compact(model.topk), arguments.repeats),
    }
    difference = (model(query, compact).logit - model(query, whole, published=True).logit).abs().item()
    table = Table("", "CPU s", "wall s")
    for name, seconds in found.items():
        table.add_row(name, *(f"{seconds[key]:.2f}" for key in ("cpu_median", "wall_median")))
    console = Console()
    console.print(table)
    console.print(
        f"A shape takes {megabytes(compact):.1f} MB, whole {megabytes(whole):.1f}; logits differ by {difference:.1e}."
    )
    if arguments.json:
        sizes = {"whole": megabytes(whole), "compact": megabytes(compact)}
        arguments.json.write_text(
            json.dumps({"seconds": found, "megabytes": sizes, "logit_difference": difference}, indent=2)
        )


if __name__ == "__main__":
    main()
