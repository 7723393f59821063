# SPDX-License-Identifier: Apache-2.0
"""Measure anomalib's PatchCore, which uses no poses, on the images and with the backbone of the other benchmarks.

    python tools/benchmark/patchcore.py DATA --category car --size 400 --weights FILE

anomalib trains PatchCore and exports it to OpenVINO. File size, seconds an image and accuracy are measured as for
exported detectors.
"""

import argparse
import tempfile
from pathlib import Path

from anomalib.deploy import CompressionType, ExportType
from anomalib.engine import Engine
from export import accuracy, run
from pose_agnostic_data import DataSpec
from pose_agnostic_methods import Settings
from pose_agnostic_models import baseline_model
from splat_pose import result_path, show, stacked

from anomalib_pose.data import MAD
from anomalib_pose.data.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=400, help="longer side of the images in pixels")
    parser.add_argument("--window", type=int, default=256, help="side that the model resizes images to")
    parser.add_argument("--coreset", type=float, default=0.01, help="fraction of the patches in the memory bank")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--layers", nargs="+", default=["blocks.2", "blocks.4"])
    parser.add_argument("--weights", required=True, help="file with the backbone's weights")
    parser.add_argument("--out", default="results/benchmark")
    parser.set_defaults(queries="", scene="gaussians")
    arguments = parser.parse_args()
    _, test, _ = stacked(arguments)
    data = MAD(root=arguments.data, category=arguments.category, image_size=arguments.size, num_workers=0)
    spec = DataSpec(arguments.category, arguments.data, arguments.category)
    network = {"backbone": arguments.backbone, "layers": tuple(arguments.layers), "weights": arguments.weights}
    settings = Settings(spec, "patchcore", window=arguments.window, **network)
    model = baseline_model(settings, arguments.weights, coreset_sampling_ratio=arguments.coreset)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, logger=False, accelerator="cpu", enable_progress_bar=False)
        engine.fit(model, datamodule=data)
        path = engine.export(
            model, ExportType.OPENVINO, export_root=folder, compression_type=CompressionType.FP16, datamodule=data
        )
        row, scores, maps = run(Path(str(path)), test)
    row |= accuracy(scores, maps, test)
    show(f"PatchCore: {arguments.category}, {arguments.size} px resized to {arguments.window}", row)
    write_json(result_path(arguments, "patchcore.json"), row)


if __name__ == "__main__":
    main()
