# SPDX-License-Identifier: Apache-2.0
"""Run the command line as ``python -m anomalib_pose.cli``."""

from anomalib_pose.cli import main

if __name__ == "__main__":
    main()
