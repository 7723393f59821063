# SPDX-License-Identifier: Apache-2.0
"""State-dict names of earlier versions, so that their checkpoints still load."""

from typing import Any

RENAMED_KEYS = {
    "model.bank.centre": "model.bank.center",
    "model.comparator": "model.comparison.comparator",
    "model.memory": "model.comparison.memory",
    "model.memory.memory": "model.comparison.memory.bank",
    "model.memory.trust": "model.comparison.memory.mixing_weights",
    "model.nearby.centre": "model.nearby.center",
    "model.surface": "model.comparison.surface",
}
"""Old name to new name, of one tensor or of a module with all of its tensors.

One table holds the renames of all versions: the new name is always that of the current version. A rename needs one row.
"""


def rename_old_keys(checkpoint: dict[str, Any]) -> None:
    """Give the tensors of a Lightning checkpoint the names of this version, in place.

    Tensors with a current name, and those that no row of ``RENAMED_KEYS`` covers, stay as they are.

    Args:
        checkpoint: holds the model's tensors under ``"state_dict"``.
    """
    state_dict = checkpoint.get("state_dict", {})
    checkpoint["state_dict"] = {current_key(name): tensor for name, tensor in state_dict.items()}


def current_key(name: str) -> str:
    """Return the name that this version gives a tensor; the longest matching row of ``RENAMED_KEYS`` decides.

    Args:
        name: name of the tensor in a checkpoint of this or of an earlier version.
    """
    matches = [old for old in RENAMED_KEYS if name == old or name.startswith(f"{old}.")]
    if not matches:
        return name
    old = max(matches, key=len)
    return RENAMED_KEYS[old] + name.removeprefix(old)
