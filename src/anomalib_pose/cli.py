# SPDX-License-Identifier: Apache-2.0
"""The command ``anomalib-pose``: anomalib's own command line, with the plug-ins registered.

It takes what ``anomalib`` takes. It is needed only where the automatic registration is switched off.
"""


def main() -> None:
    """Register the installed plug-ins, then run anomalib's command line on ``sys.argv``."""
    from anomalib.cli.cli import main as anomalib_main

    from anomalib_pose.plugin import register

    register()
    anomalib_main()


if __name__ == "__main__":
    main()
