# SPDX-License-Identifier: Apache-2.0
"""Measure anomalib's own PatchCore, which knows of no poses, on the images and the backbone of the other benchmarks.

    python tools/benchmark/patchcore.py DATA --category car --size 400 --weights FILE

It is trained and exported to OpenVINO by anomalib; file size, seconds an image and accuracy are measured as for
exported detectors.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from anomalib.models import Patchcore
from export import accuracy, run
from splat_pose import kept, show, stacked
from torchvision.transforms.v2 import Normalize

from anomalib_pose.data import MAD


def untrained(arguments: argparse.Namespace) -> Patchcore:
    """The model with the backbone's weights from a file, which anomalib itself has no argument for."""
    processor = Patchcore.configure_pre_processor(image_size=(arguments.window, arguments.window))
    for transform in processor.transform.transforms:
        if isinstance(transform, Normalize):  # what the weights were trained with
            transform.mean, transform.std = [0.5] * 3, [0.5] * 3
    model = Patchcore(
        arguments.backbone,
        arguments.layers,
        pre_trained=False,
        coreset_sampling_ratio=arguments.coreset,
        pre_processor=processor,
    )
    network = model.model.feature_extractor.feature_extractor
    weights = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    own = network.state_dict()
    network.load_state_dict({name: weights[name] for name in own})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=400, help="of the images")
    parser.add_argument("--window", type=int, default=256, help="side that the model resizes images to")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the patches that are remembered")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--layers", nargs="+", default=["blocks.2", "blocks.4"])
    parser.add_argument("--weights", required=True, help="file with the backbone's weights")
    parser.add_argument("--out", default="results/benchmark")
    parser.set_defaults(queries="", scene="gaussians")
    arguments = parser.parse_args()
    _, test, _ = stacked(arguments)
    data = MAD(root=arguments.data, category=arguments.category, image_size=arguments.size, num_workers=0)
    model = untrained(arguments)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, logger=False, accelerator="cpu", enable_progress_bar=False)
        engine.fit(model, datamodule=data)
        path = engine.export(
            model, ExportType.OPENVINO, export_root=folder, compression_type=CompressionType.FP16, datamodule=data
        )
        row, scores, maps = run(Path(str(path)), test)
    row |= accuracy(scores, maps, test)
    show(f"PatchCore: {arguments.category}, {arguments.size} px seen at {arguments.window}", row)
    kept(arguments, "patchcore.json").write_text(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
