# SPDX-License-Identifier: Apache-2.0
"""Fit NeRF's two networks to the views of an object, as the paper's preset of OmniposeAD does, or with fewer steps.

    python tools/benchmark/radiance_field.py DATA --category car --size 100 --steps 20000 --rays 16

The paper takes 200,000 steps of 1024 rays. The program leaves every tenth view out of the fit. It prints the PSNR on
these views, and the seconds of a step. An interrupted fit continues from its checkpoint in ``--out``.
"""

import argparse
import time
from pathlib import Path

from splat_pose import show, stacked

from anomalib_pose.geometry import Camera
from anomalib_pose.scene import white_foreground
from anomalib_pose.scene.fit_loop import held_out_psnr
from anomalib_pose.scene.mlp_fit import MlpFitSettings, fit_mlp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=100, help="longer side of the images in pixels")
    parser.add_argument("--steps", type=int, default=MlpFitSettings.steps // 10)
    parser.add_argument("--rays", type=int, default=MlpFitSettings.rays, help="rays of a step")
    parser.add_argument("--out", default="results/benchmark", help="folder of the checkpoint")
    parser.set_defaults(queries="")
    arguments = parser.parse_args()
    train, _, _ = stacked(arguments)
    cameras = Camera(train["camera_to_world"], train["K"], *reversed(train["image"].shape[-2:]))
    held_out = tuple(range(5, len(train["image"]), 10))
    fitted = [index for index in range(len(train["image"])) if index not in held_out]
    masks = white_foreground(train["image"])
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scene, _ = fit_mlp(
        train["image"][fitted],
        cameras[fitted],
        None if masks is None else masks[fitted],
        MlpFitSettings(steps=arguments.steps, rays=arguments.rays),
        checkpoint=folder / f"{arguments.category}_{arguments.size}_mlp_{arguments.steps}_{arguments.rays}.ckpt",
    )
    seconds = time.perf_counter() - start
    psnr = held_out_psnr(scene, train["image"], cameras, held_out, white=masks is not None)
    row = {"psnr_db": psnr, "seconds": seconds, "s_a_step": seconds / arguments.steps}
    show(f"networks: {arguments.category}, {arguments.size} px, {arguments.steps} steps of {arguments.rays} rays", row)


if __name__ == "__main__":
    main()
