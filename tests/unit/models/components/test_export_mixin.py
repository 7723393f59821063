# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from anomalib_pose.compare import CalibratedComparator
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
        self.model = SceneDetector(make_toy(), make_estimator(), CalibratedComparator(**options))
        self.model.image_size = torch.tensor([SIZE, SIZE])
        self.model.intrinsics = CAMERAS.median_intrinsics
        self.model.bank.build(self.model.rendered, CAMERAS)


def test_maps_are_smoothed_as_far_on_the_object_as_the_models():
    exporter = Exporter(crop_size=256, blur_sigma=4.0)
    for settings, sigma in (({"size": 64}, 1.0), ({"size": 64, "drawn_size": 128}, 2.0), ({"drawn": False}, 4.0)):
        found = exporter.feed_forward(views=4, progress=False, **settings).model.comparator
        assert found.blur_sigma == pytest.approx(sigma)
    assert exporter.model.comparator.blur_sigma == 4.0


def test_what_no_graph_can_do_is_refused():
    with pytest.raises(ValueError, match="light_correction fits each image by itself"):
        Exporter(light_correction=True).feed_forward(views=4, size=64, progress=False)
