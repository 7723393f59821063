# SPDX-License-Identifier: Apache-2.0
"""Build hook of hatchling: editable installations get a copy of the import hook too.

`import torch` loads the hook in every process of the environment. A link into the checkout would break `import torch`
as soon as the checkout moves.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOOK = "anomalib_pose_autoload.py"


class EditableHook(BuildHookInterface):
    """Copies the import hook into an editable wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to the wheel.

        Args:
            version: ``"standard"`` or ``"editable"``.
            build_data: see hatchling; changed in place.
        """
        if version == "editable":
            build_data["force_include_editable"][f"{self.root}/src/{HOOK}"] = HOOK
