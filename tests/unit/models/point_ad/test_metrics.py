# SPDX-License-Identifier: Apache-2.0
"""The foreground AUROC agrees with scikit-learn."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomalib_pose.data import CloudBatch
from anomalib_pose.models.point_ad.metrics import ForegroundAUROC


def test_only_cells_with_a_point_count():
    g = torch.Generator().manual_seed(0)
    metric = ForegroundAUROC(prefix="pixel_")
    values, truth = [], []
    for _ in range(3):
        batch = CloudBatch(
            image=torch.rand(2, 3, 9, 9, generator=g),
            point_scores=torch.rand(2, 9, 9, generator=g),
            gt_mask=torch.rand(2, 9, 9, generator=g) > 0.8,
            valid=torch.rand(2, 9, 9, generator=g) > 0.5,
        )
        metric.update(batch)
        foreground = batch.valid
        values.append(batch.point_scores[foreground])
        truth.append(batch.gt_mask[foreground])
    expected = roc_auc_score(torch.cat(truth).numpy(), torch.cat(values).numpy())
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    assert metric.name == "pixel_ForegroundAUROC"
