# SPDX-License-Identifier: Apache-2.0
import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor

from anomalib_pose.compare import CalibratedComparator, ReferenceComparison, ScoringSettings, WindowSettings
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.models.components.export_mixin import DetectorExportMixin
from anomalib_pose.pose import make_estimator
from sample_scenes import make_toy

SIZE = 64
CAMERAS = Camera.from_fov(view_sphere(12, 3.0, 1.0, -0.2), 0.7, SIZE, SIZE)


class Exporter(DetectorExportMixin):
    post_processor = None

    def __init__(self, **options: object) -> None:
        self.model = SceneDetector(make_toy(), make_estimator(), ReferenceComparison(CalibratedComparator(**options)))
        self.model.image_size = torch.tensor([SIZE, SIZE])
        self.model.intrinsics = CAMERAS.median_intrinsics
        self.model.bank.build(self.model.rendered, CAMERAS)


def test_blur_covers_the_same_part_of_the_object_as_in_the_model():
    exporter = Exporter(window=WindowSettings(256), scoring=ScoringSettings(blur_sigma=4.0))
    for settings, sigma in (({"size": 64}, 1.0), ({"size": 64, "drawn_size": 128}, 2.0), ({"drawn": False}, 4.0)):
        comparator = exporter.feed_forward(views=4, progress=False, **settings).model.comparator
        assert comparator.scoring.blur_sigma == pytest.approx(sigma)
    assert exporter.model.comparison.comparator.scoring.blur_sigma == 4.0


def views(poses: torch.Tensor, *, damage: bool) -> torch.Tensor:
    """Photographs of the toy; with ``damage``, each has a black square in its center."""
    images = [make_toy().render(CAMERAS[0].with_pose(pose), torch.ones(3)).rgb.permute(2, 0, 1) for pose in poses]
    photographs = torch.stack(images).clamp(0, 1)
    if damage:
        photographs[:, :, 28:36, 28:36] = 0
    return photographs


def validation(*, damage: tuple[bool, ...]) -> SimpleNamespace:
    """A datamodule with one validation batch of three images per entry of ``damage``."""
    batches = []
    for damaged in damage:
        images = views(view_sphere(3, 3.0, 0.9, 0.1), damage=damaged)
        mask = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
        mask[:, 28:36, 28:36] = damaged
        batches.append(ImageBatch(image=images, gt_label=torch.full((3,), damaged), gt_mask=mask))
    return SimpleNamespace(setup=lambda: None, val_dataloader=lambda: batches)


def test_thresholds_are_calibrated_on_data_with_both_classes_and_otherwise_transferred(caplog):
    exporter = Exporter()
    exporter.model.calibration_views = (views(CAMERAS.camera_to_world[1::2], damage=False) * 255).to(torch.uint8)
    exporter.post_processor = PostProcessor()
    for name in ("_image_threshold", "_pixel_threshold", "image_max", "pixel_max"):
        getattr(exporter.post_processor, name).fill_(20.0)
    learned = copy.deepcopy(exporter.post_processor.state_dict())
    options = {"views": 12, "size": SIZE, "progress": False}
    both = validation(damage=(False, True))
    calibrated = exporter.feed_forward(datamodule=both, **options)
    for batch in both.val_dataloader():
        with torch.no_grad():
            output = calibrated(batch.image)
        assert torch.equal(output.pred_label, batch.gt_label)
    with caplog.at_level(logging.WARNING):
        without_defects = exporter.feed_forward(datamodule=validation(damage=(False,)), **options)
    assert "got 3 normal and 0 defective ones." in caplog.text
    transferred = exporter.feed_forward(**options).post_processor.image_threshold
    assert without_defects.post_processor.image_threshold == transferred
    assert transferred != calibrated.post_processor.image_threshold
    assert all(
        torch.equal(value, exporter.post_processor.state_dict()[name])
        for name, value in learned.items()
        if value.isfinite().all()
    )
