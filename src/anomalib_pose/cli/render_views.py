# SPDX-License-Identifier: Apache-2.0
"""Render gray reference views of a mesh, in the layout that Looking3D reads.

anomalib-pose render-views chair.glb views
"""

import argparse
import math
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("mesh", type=Path, help="file .obj, .ply, .glb, .gltf, .stl or .off; y is up")
    parser.add_argument("out", type=Path, help="folder of the views")
    parser.add_argument("--name", help="id in the names of the files (default: the name of the mesh file)")
    parser.add_argument("--views", type=int, default=20, help="number of views around the mesh")
    parser.add_argument("--elevation", type=float, default=20.0, help="elevation of the cameras in degrees")
    parser.add_argument("--distance", type=float, default=3.0, help="distance of the cameras from the origin")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points of the correspondences")
    parser.add_argument(
        "--keep-scale", action="store_true", help="do not move and scale the mesh to fit into the views"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")


def run(options: argparse.Namespace) -> None:
    """Write the views."""
    from anomalib_pose.data.files import check_source_stays
    from anomalib_pose.data.reference_views.mesh_files import read_mesh
    from anomalib_pose.sample_data.reference_writer import write_reference_views

    check_source_stays(options.mesh, options.out)
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
