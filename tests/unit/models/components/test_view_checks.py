# SPDX-License-Identifier: Apache-2.0
"""Training views that cannot be right are named before the fit."""

import math
import re
from collections.abc import Callable

import pytest
import torch

from anomalib_pose.geometry import Camera, mad_lattice, view_sphere
from anomalib_pose.models.components.view_checks import check_views
from anomalib_pose.models.components.view_collection import CollectedView

K = Camera.from_fov(torch.eye(4), 0.7, 16, 16).K
FLIPPED = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
OFFSET = torch.tensor([1e6, 0, -4e5], dtype=torch.float64)


def make_views(count: int = 12) -> list[CollectedView]:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    poses = view_sphere(count, 3.5).double()
    return [CollectedView(images[i], poses[i].clone(), K, None, f"{i}.png") for i in range(count)]


def change(view: CollectedView, **values: object) -> CollectedView:
    return CollectedView(**{**vars(view), **values})


def blank(views: list[CollectedView], number: int) -> None:
    views[number] = change(views[number], image=torch.full((3, 16, 16), 0.7))


def turned(views: list[CollectedView], number: int) -> None:
    """OpenGL axes instead of OpenCV's."""
    views[number] = change(views[number], camera_to_world=views[number].camera_to_world @ FLIPPED)


def copied(views: list[CollectedView], number: int) -> None:
    views[number] = change(views[0], name=f"{number}.png")


def repeated(views: list[CollectedView], number: int) -> None:
    views[number] = change(views[number], image=views[0].image)


def moved(views: list[CollectedView], number: int) -> None:
    views[number] = change(views[number], camera_to_world=views[0].camera_to_world)


FAULTS = {
    blank: r"are blank: 3\.png",
    turned: r"look away from the object: 3\.png",
    copied: r"occur twice: 3\.png",
    repeated: r"equal pixels but different poses: 0\.png, 3\.png",
    moved: r"one pose but different pixels: 0\.png, 3\.png",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("offset", [0 * OFFSET, OFFSET], ids=["origin", "kilometers"])
def test_one_wrong_view_is_named_and_two_thirds_are_refused(fault: Callable, offset: torch.Tensor, caplog):
    def away(views: list[CollectedView]) -> list[CollectedView]:
        for view in views:
            view.camera_to_world[:3, 3] += offset
        return views

    views = away(make_views())
    fault(views, 3)
    check_views(views)
    assert len(caplog.messages) == 1
    assert re.search(FAULTS[fault], caplog.text)
    views = away(make_views())
    for number in range(1, 12):
        fault(views, number)
    with pytest.raises(ValueError, match="The object cannot be fitted"):
        check_views(views)


@pytest.mark.parametrize(
    "poses",
    [mad_lattice(3.5), mad_lattice(3.5)[::15], view_sphere(30, 3.0, 1.5, 0.2)],
    ids=["lattice", "meridian", "hemisphere"],
)
def test_usual_views_have_no_fault(poses, caplog):
    images = torch.rand(len(poses), 3, 16, 16)
    check_views([CollectedView(images[i], poses[i].double(), K, None, f"{i}.png") for i in range(len(poses))])
    assert not caplog.messages


def test_parallel_cameras_have_no_common_point(caplog):
    views = make_views()
    for index, view in enumerate(views):
        view.camera_to_world[:] = torch.eye(4)
        view.camera_to_world[0, 3] = index
    check_views(views)
    assert not caplog.messages


@pytest.mark.parametrize("name", ["K", "camera_to_world"])
def test_numbers_that_are_not_finite_are_refused_by_name(name):
    views = make_views()
    wrong = vars(views[3])[name].clone()
    wrong[0, 2] = math.nan
    views[3] = change(views[3], **{name: wrong})
    with pytest.raises(ValueError, match=r"3\.png: .*finite"):
        check_views(views)
