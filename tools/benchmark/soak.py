# SPDX-License-Identifier: Apache-2.0
"""Show that memory and time of a query stay flat over many queries.

    python tools/benchmark/soak.py PHOTOS --checkpoint model.ckpt --weights FILE --queries 1000
    python tools/benchmark/soak.py PHOTOS --openvino weights/openvino/model.xml --queries 1000

The script predicts the photographs again and again, with the model in PyTorch or by anomalib's ``OpenVINOInferencer``.
Every hundredth query it prints the memory of the process and the median seconds of the last hundred queries. The last
line is the growth of both between the second hundred and the last hundred.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from anomalib_pose.data.images import read_image
from anomalib_pose.data.listing import image_files

_BLOCK = 100
console = Console()


def resident_megabytes() -> float:
    """Return the memory of this process that is in RAM, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def pytorch_predictor(checkpoint: Path, weights: str) -> Callable[[Path], float]:
    """Return a function that reads a photograph and returns its score, by the model of a checkpoint."""
    from anomalib_pose.models.components import test_time_grad
    from anomalib_pose.models.localization import load_fitted

    model = load_fitted(checkpoint, **({"weights_path": weights} if weights else {}))

    def predict(path: Path) -> float:
        with test_time_grad():
            return float(model.model(read_image(path)[0][None]).pred_score)

    return predict


def openvino_predictor(path: Path) -> Callable[[Path], float]:
    """Return a function that reads a photograph and returns its score, by an exported model."""
    from anomalib.deploy import OpenVINOInferencer

    inferencer = OpenVINOInferencer(path.resolve(), device="CPU")
    return lambda photograph: float(inferencer.predict(str(photograph)).pred_score.item())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of queries of the size of the training views")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, help="checkpoint of a fitted scene model")
    model.add_argument("--openvino", type=Path, help="exported model (.xml)")
    parser.add_argument("--weights", default="", help="file with the weights of the checkpoint's backbone")
    parser.add_argument("--queries", type=int, default=1000, help="number of queries, a multiple of 100, 300 or more")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in image_files(arguments.photographs)]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # anomalib's inferencer writes a cache into the working directory
        if arguments.openvino:
            predict = openvino_predictor(arguments.openvino)
        else:
            predict = pytorch_predictor(arguments.checkpoint, arguments.weights)
        memory, seconds = [], []
        scores: dict[Path, set[float]] = {path: set() for path in paths}
        block: list[float] = []
        for number, path in zip(range(1, arguments.queries + 1), itertools.cycle(paths), strict=False):
            start = time.perf_counter()
            scores[path].add(predict(path))
            block.append(time.perf_counter() - start)
            if number % _BLOCK == 0:
                memory.append(resident_megabytes())
                seconds.append(statistics.median(block))
                console.print(f"{number:5d} queries: {memory[-1]:6.0f} MB, {seconds[-1]:.3f} s for a query")
                block.clear()
    console.print(f"growth: {memory[-1] - memory[1]:.1f} MB, {seconds[-1] / seconds[1]:.2f} times the seconds")
    console.print(f"photographs with more than one score: {sum(len(values) > 1 for values in scores.values())}")


if __name__ == "__main__":
    main()
