# SPDX-License-Identifier: Apache-2.0
"""The part of PointAD that sees one image at a time, as a graph: what is left for the host is the mean over points."""

import copy

from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_pose.models.point_ad.scorer import ClipScorer, abnormality


class ViewGraph(nn.Module):
    """Images in, scores and maps of their patches out; the texts are one constant vector.

    Args:
        scorer: with its image tower; copied.
        direction: see ``text.direction`` (d,).
    """

    direction: Tensor

    def __init__(self, scorer: ClipScorer, direction: Tensor) -> None:
        super().__init__()
        self.scorer = copy.deepcopy(scorer).cpu().eval().requires_grad_(requires_grad=False)
        self.register_buffer("direction", direction.detach().cpu().clone())

    @property
    def image_size(self) -> int:
        """Side in pixels of the images, which this graph does not resize."""
        return self.scorer.vision.image_size

    def forward(self, images: Tensor) -> InferenceBatch:
        """How abnormal images (n,) and their patches (n, p, p) are, as ``pred_score`` and ``anomaly_map``.

        Args:
            images: RGB (n, 3, image_size, image_size) in [0, 1].
        """
        score, patches = abnormality(self.scorer.encode(self.scorer.vision.normalise(images)), self.direction)
        return InferenceBatch(pred_score=score, anomaly_map=patches)
