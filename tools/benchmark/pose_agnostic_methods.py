# SPDX-License-Identifier: Apache-2.0
"""Methods of ``pose_agnostic.py``, and the settings that identify a run."""

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pose_agnostic_data import DataSpec

PAPER_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "paper"
FORMAT = 8
"""Version of the results. Increase it when runs store or measure different values, so that older runs are repeated."""


@dataclass(frozen=True)
class Method:
    """A model with its settings.

    Args:
        title: name in tables and plots.
        model: class name, in ``anomalib_pose`` for scene models, else in ``anomalib.models``.
        scene: whether it is a scene model.
        arguments: arguments of the constructor.
        comparison: the comparator's name, and arguments of the comparator that the model's constructor lacks.
        network: whether it compares features of the backbone.
        needs_network: whether it needs the backbone.
        preset: file in ``configs/paper`` that holds the model's arguments; empty for its defaults.
    """

    title: str
    model: str = "SplatPose"
    scene: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=lambda: {"name": "calibrated"})
    network: bool = True
    needs_network: bool = False
    preset: str = ""


def _paper(title: str, model: str, preset: str, comparator: str) -> Method:
    return Method(f"{title}, paper's preset", model, True, {}, {"name": comparator}, needs_network=True, preset=preset)


def _changed(title: str, **arguments: Any) -> Method:
    return Method(f"SplatPose, {title}", arguments=arguments)


def _compared(title: str, *, needs_network: bool = False, **comparison: Any) -> Method:
    comparison = {"name": "calibrated", **comparison}
    return Method(f"SplatPose, {title}", comparison=comparison, needs_network=needs_network)


def _baseline(model: str, **arguments: Any) -> Method:
    return Method(model, model, scene=False, arguments=arguments, needs_network=True)


METHODS = {
    "splatpose": Method("SplatPose"),
    "splatpose_paper": _paper("SplatPose", "SplatPose", "splatpose_mad.yaml", "paper"),
    "splatpose_no_surface": _changed("no surface statistics", surface_views=0),
    "splatpose_no_memory": _changed("no patch memory", memory_patches=0),
    "splatpose_not_corrected": _changed("no residuals of nearby views", nearby_views=0),
    "splatpose_one_start": _changed("one initial pose", starts=1),
    "splatpose_paper_comparison": _compared("paper's comparison", name="paper", needs_network=True),
    "splatpose_no_own_level": _compared("no self-normalization", self_normalization=0.0),
    "splatpose_no_tolerance": _compared("no shift tolerance", tolerance=0.0),
    "splatpose_no_network": Method("SplatPose, no network", network=False),
    "omniposead": Method("OmniposeAD", "OmniposeAD"),
    "omniposead_paper": _paper("OmniposeAD", "OmniposeAD", "omniposead_mad.yaml", "paper"),
    "piad": Method("PIAD", "PIAD", comparison={"name": "illumination"}),
    "piad_paper": _paper("PIAD", "PIAD", "piad_mip.yaml", "product"),
    "piad_paper_comparison": Method(
        "PIAD, paper's comparison",
        "PIAD",
        arguments={"relight": False},
        comparison={"name": "product"},
        needs_network=True,
    ),
    "piad_no_relight": Method(
        "PIAD, no relighting", "PIAD", arguments={"relight": False}, comparison={"name": "illumination"}
    ),
    "patchcore": _baseline("Patchcore", coreset_sampling_ratio=0.01),
    "padim": _baseline("Padim", n_features=100),
    "dfm": _baseline("Dfm"),
}
"""Methods by the names that ``--methods`` takes."""


@dataclass(frozen=True)
class Settings:
    """Settings that determine the outcome of a run, together with the files of the data set.

    Args:
        data: the data set.
        method: key of ``METHODS``.
        seed: seed of the run.
        size: longer side of the images, pixels; 0 for the stored size.
        backbone: timm name of the network.
        weights: name of the file with its weights; empty for none.
        weights_sha256: digest of that file.
        mean: image normalization of the network, the same for all channels.
        std: image normalization of the network.
        pad_type: padding of its convolutions; empty for timm's default.
        layers: stages that anomalib's models read, by timm's module names; scene models read the first four stages.
        window: side that anomalib's models resize images to, pixels.
        steps: steps of the fits; 0 for each model's default.
        paper_steps: steps of the papers' fits; 0 for the papers' numbers.
        paper_refiner_steps: steps of the papers' refiners; 0 for the papers' numbers.
        device: cpu or cuda.
        format: version of the results.
    """

    data: DataSpec
    method: str
    seed: int = 0
    size: int = 200
    backbone: str = "mobilenetv2_100"
    weights: str = ""
    weights_sha256: str = ""
    mean: float = 0.5
    std: float = 0.5
    pad_type: str = "same"
    layers: tuple[str, ...] = ("blocks.2", "blocks.4")
    window: int = 256
    steps: int = 0
    paper_steps: int = 0
    paper_refiner_steps: int = 0
    device: str = "cpu"
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            msg = f"Expected a method of {', '.join(METHODS)}, got {self.method!r}."
            raise ValueError(msg)
        if METHODS[self.method].needs_network and not self.weights:
            msg = f"{self.method} compares features of a network: give --weights."
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """Name of the run, and of its files."""
        return f"{self.data.name}-{self.method}-{self.seed}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's constructor without those of the network."""
        method = METHODS[self.method]
        if not method.scene:
            return dict(method.arguments)
        arguments: dict[str, Any] = {}
        steps = {"steps": self.steps}
        if method.preset:
            preset = yaml.safe_load((PAPER_CONFIGS / method.preset).read_text(encoding="utf-8"))
            arguments = preset["model"]["init_args"]
            steps = {"steps": self.paper_steps, "refiner_steps": self.paper_refiner_steps}
            del arguments["backbone"]
        arguments |= {name: number for name, number in steps.items() if number}
        return {**arguments, **method.arguments, "comparator": method.comparison["name"], "seed": self.seed}

    def stored(self) -> dict[str, Any]:
        """Return the settings that identify a run, as JSON: only those that this method depends on."""
        method = METHODS[self.method]
        content = {name: getattr(self, name) for name in ("method", "seed", "size", "device", "format")}
        content |= {"title": method.title, "data": asdict(self.data), "arguments": self.arguments}
        content["network"] = self._network() if method.network and self.weights else {}
        if method.scene:
            return content | {"comparison": method.comparison}
        return content | {"layers": list(self.layers), "window": self.window}

    def _network(self) -> dict[str, Any]:
        names = ("backbone", "weights", "weights_sha256", "mean", "std", "pad_type")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restored(cls, content: dict[str, Any]) -> "Settings":
        """Make settings from the JSON of ``dataclasses.asdict``."""
        return cls(**{**content, "data": DataSpec(**content["data"]), "layers": tuple(content["layers"])})


@cache
def sha256(path: Path) -> str:
    """Compute the digest of a file.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    if not path.is_file():
        msg = f"There is no file {path}: --weights names a file with the backbone's weights."
        raise FileNotFoundError(msg)
    return hashlib.sha256(path.read_bytes()).hexdigest()
