# SPDX-License-Identifier: Apache-2.0
"""The interface of all comparators."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.lighting.reflectance import Reflectance


@runtime_checkable
class Comparator(Protocol):
    """Compares queries with references: renderings of the defect-free object from the queries' cameras."""

    @property
    def extractor(self) -> FeatureExtractor | None:
        """Network whose features are compared; None if the comparator uses no network."""
        ...

    @property
    def can_calibrate(self) -> bool:
        """Whether ``fit_calibration`` learns the residuals of normal views; if False, it does nothing."""
        ...

    @property
    def reflectance(self) -> Reflectance | None:
        """Decomposition of images into their reflectance; None if the comparator does not compare reflectance."""
        ...

    def resized(self, size: int) -> "Comparator":
        """Return a copy for windows of another size; its smoothing covers the same part of the object.

        Args:
            size: side of the windows in pixels.
        """
        ...

    def __call__(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reference_reflectance: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Compute anomaly maps: finite, larger where query and reference differ more.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the queries, RGB in [0, 1].
            alpha: opacity of the object in the references, in [0, 1].
            reference_reflectance: rendered reflectance of the references; None to compute it from the references.
        """
        ...

    def score(self, anomaly_map: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """Compute one score for each image from its anomaly map.

        Args:
            anomaly_map: maps of this comparator.
            alpha: opacity of the object in the references, in [0, 1].
        """
        ...

    def fit_calibration(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reference_reflectances: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Learn the residuals of normal views; do nothing if ``can_calibrate`` is False.

        Args:
            queries: normal views that the scene was not fitted to, RGB in [0, 1].
            references: references of the views, RGB in [0, 1].
            alphas: opacity of the object in the references, in [0, 1].
            reference_reflectances: see ``__call__``.
        """
        ...

    def compare_windows(
        self, query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """Compute anomaly maps of images that are already windows around the object; exported detectors call this.

        Args:
            query: windows of queries, RGB in [0, 1].
            reference: windows of the queries' references, RGB in [0, 1].
            alpha: opacity of the object in the references, in [0, 1].
        """
        ...

    def fit_windows(
        self, queries: Float[Tensor, "n 3 h w"], references: Float[Tensor, "n 3 h w"], alphas: Float[Tensor, "n h w"]
    ) -> None:
        """Learn the residuals of normal views from windows around the object; see ``fit_calibration``.

        Args:
            queries: windows of normal views, RGB in [0, 1].
            references: windows of the views' references, RGB in [0, 1].
            alphas: opacity of the object in the references, in [0, 1].
        """
        ...
