# SPDX-License-Identifier: Apache-2.0
"""Cache of pose estimates, so that a test does not repeat the search of a validation on the same queries."""

import hashlib
import operator
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anomalib_pose.pose import PoseEstimate, Query

if TYPE_CHECKING:
    from anomalib_pose.models.components.scene_detector import SceneDetector

_CAPACITY = 20_000
"""Number of estimates in memory, about 2 kB each; the least recently used estimate is dropped first."""


class _CachedPose(NamedTuple):
    """An estimate, and the duration of its search."""

    estimate: PoseEstimate
    seconds: float


class PoseCache:
    """Keeps the pose estimate of each query as long as the fitted model does not change.

    A query is known by a hash of its image, intrinsics and mask; a model by a hash of its tensors. A checkpoint with
    equal tensors therefore keeps the estimates, and any other checkpoint or fit drops them. Copies are empty.
    """

    def __init__(self) -> None:
        self.reused_seconds = 0.0
        """Duration of the searches that were not repeated."""
        self._estimates: OrderedDict[bytes, _CachedPose] = OrderedDict()
        self._tensors: list[Tensor] = []
        self._token: object = None
        self._digest = b""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PoseCache, ()

    def __len__(self) -> int:
        """Number of estimates."""
        return len(self._estimates)

    @contextmanager
    def used_by(self, detector: "SceneDetector") -> Iterator[None]:
        """Let a detector take its estimates from this cache inside the block.

        Args:
            detector: fitted detector; if it has changed since the last block, all estimates are dropped.
        """
        self._check(detector)
        detector.pose_cache = self
        try:
            yield
        finally:
            detector.pose_cache = None

    def _check(self, detector: "SceneDetector") -> None:
        settings = _search_settings(detector)
        tensors = [*detector.parameters(), *detector.buffers()]
        # A hash of all tensors takes too long for each batch. Each write to a tensor changes its version, and a tensor
        # that is kept here cannot give its identity to another one.
        versions = [(-1 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in tensors]
        same = len(tensors) == len(self._tensors) and all(map(operator.is_, tensors, self._tensors))
        if same and (settings, versions) == self._token:
            return
        self._tensors = tensors
        digest = _hash(settings, *tensors)
        if digest != self._digest:
            self._estimates.clear()
        self._token, self._digest = (settings, versions), digest

    def estimate(self, query: Query, search: Callable[[], PoseEstimate]) -> PoseEstimate:
        """Return the estimate of a query; search it at the first call.

        Args:
            query: the query.
            search: estimates the camera.
        """
        key = _hash(None, query.image, query.K, query.foreground)
        cached = self._estimates.get(key)
        if cached is None:
            start = time.perf_counter()
            estimate = search()
            cached = _CachedPose(estimate, time.perf_counter() - start)
        else:
            self.reused_seconds += cached.seconds
        self._estimates[key] = cached
        self._estimates.move_to_end(key)
        if len(self._estimates) > _CAPACITY:
            self._estimates.popitem(last=False)
        return cached.estimate


def _search_settings(detector: "SceneDetector") -> object:
    """Return the settings of the search that are not tensors."""
    estimator = detector.estimator
    parts = (estimator.refiner, estimator.robust_refiner, estimator.relighting_refiner, estimator.feature_localizer)
    return (
        estimator.starts,
        estimator.retry_below,
        detector.bank.rolls,
        detector.comparison.relight,
        [id(part) for part in parts],
    )


def _hash(settings: object, *tensors: Tensor | None) -> bytes:
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.device}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
