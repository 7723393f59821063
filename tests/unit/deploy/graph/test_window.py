# SPDX-License-Identifier: Apache-2.0

import torch

from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.geometry import Camera


def test_projections_of_the_window_camera_are_cropped_and_scaled_projections_of_the_image():
    window, camera = Window(0.25, 0.5, 0.5, 0.4), Camera.from_fov(torch.eye(4), 0.7, 200, 100)
    assert window.pixels(camera, 160) == (64, 160)  # a hundred pixels by forty
    points = torch.tensor([[0.1, 0.2, 2.0], [-0.1, 0.3, 1.5]])
    in_image = camera.project(points)[0]
    in_window = window.camera(camera, 64, 160).project(points)[0]
    torch.testing.assert_close(in_window, (in_image - torch.tensor([50.0, 50.0])) * 1.6, atol=1e-4, rtol=1e-5)
