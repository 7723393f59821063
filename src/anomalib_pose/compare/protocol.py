# SPDX-License-Identifier: Apache-2.0
"""What every comparator can do."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare.lighting.reflectance import Reflectance


@runtime_checkable
class Comparator(Protocol):
    """Compares a photograph with the rendering of the good object from the same camera."""

    @property
    def reflectance(self) -> Reflectance | None:
        """How it takes images to what they reflect; None if it does not compare that."""
        ...

    def __call__(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reflected: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Anomaly map: finite, larger where query and reference differ more.

        Args:
            query: photographs, RGB in [0, 1].
            reference: their defect-free renderings, RGB in [0, 1].
            alpha: opacity of the object in the reference, in [0, 1].
            reflected: what the reference reflects, where that is rendered too; None to take it from the reference.
        """
        ...

    def score(self, anomaly_map: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """One number an image from its anomaly map.

        Args:
            anomaly_map: maps returned by the comparator.
            alpha: opacity of the object in the reference, in [0, 1].
        """
        ...

    def fit_calibration(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reflected: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Learn from good views how good views differ from their renderings; may do nothing.

        Args:
            queries: good views that the scene was not fitted to, RGB in [0, 1].
            references: their renderings, RGB in [0, 1].
            alphas: opacity of the object in the renderings, in [0, 1].
            reflected: what the renderings reflect; see ``__call__``.
        """
        ...

    def compare_windows(
        self, query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """Anomaly map of images that show the object's window; what an exported detector calls.

        Args:
            query: windows of photographs, RGB in [0, 1].
            reference: their renderings, RGB in [0, 1].
            alpha: opacity of the object in the reference, in [0, 1].
        """
        ...

    def fit_windows(
        self, queries: Float[Tensor, "n 3 h w"], references: Float[Tensor, "n 3 h w"], alphas: Float[Tensor, "n h w"]
    ) -> None:
        """``fit_calibration`` on windows of the object.

        Args:
            queries: windows of good views, RGB in [0, 1].
            references: their renderings, RGB in [0, 1].
            alphas: opacity of the object in the renderings, in [0, 1].
        """
        ...
