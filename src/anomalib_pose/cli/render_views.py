# SPDX-License-Identifier: Apache-2.0
"""Draw gray reference views of a mesh: ``python tools/render_views.py chair.glb views``."""

import argparse
import logging
import math
import sys
from pathlib import Path

from anomalib_pose.data.reference_views.mesh_files import read_mesh
from anomalib_pose.sample_data.reference_writer import write_reference_views


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mesh", type=Path, help="file .obj, .ply, .glb, .gltf, .stl or .off; y is up")
    parser.add_argument("out", type=Path, help="folder of the views")
    parser.add_argument("--name", help="id in the names of the files; the mesh file's name by default")
    parser.add_argument("--views", type=int, default=20, help="number of views around the mesh")
    parser.add_argument("--elevation", type=float, default=20.0, help="of the cameras, degrees")
    parser.add_argument("--distance", type=float, default=3.0, help="of the cameras from the origin")
    parser.add_argument("--seed", type=int, default=0, help="chooses the points of the correspondences")
    parser.add_argument(
        "--keep-scale", action="store_true", help="do not move and scale the mesh to fit into the views"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_reference_views(
            read_mesh(options.mesh, normalize=not options.keep_scale),
            options.out,
            options.name or options.mesh.stem,
            views=options.views,
            elevation=math.radians(options.elevation),
            distance=options.distance,
            seed=options.seed,
            overwrite=options.overwrite,
        )
    except (OSError, ImportError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
