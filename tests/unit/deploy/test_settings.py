# SPDX-License-Identifier: Apache-2.0

import pytest

from anomalib_pose.deploy import DetectorSettings
from anomalib_pose.deploy.settings import bank_megabytes, check_size


def test_a_bank_that_is_too_large_is_refused_with_numbers():
    assert bank_megabytes(1000, 256, 256) == pytest.approx(1000 * (4 * 256**2 + 8 * 625) / 1e6)
    with pytest.raises(ValueError, match=r"4000 views of 400 x 400.*2580 MB.*max_megabytes=512.*views=793 fit"):
        check_size(DetectorSettings(views=4000, size=400), 400, 400)
    # a view has one byte for each Gaussian, and a Gaussian of degree 2 has 40 numbers
    view, fixed = (4 * 256**2 + 8 * 625 + 20_000) / 1e6, 20_000 * 160 / 1e6
    assert check_size(DetectorSettings(views=500), 256, 256, 20_000, 2) == pytest.approx(500 * view + fixed)
    with pytest.raises(ValueError, match=rf"and 20000 Gaussians takes 147 MB.*views={int((140 - fixed) / view)} fit"):
        check_size(DetectorSettings(views=500, max_megabytes=140), 256, 256, 20_000, 2)
    corrected = r"and 20000 Gaussians, corrected by 30 MB of photographs, takes 177 MB"
    with pytest.raises(ValueError, match=rf"{corrected}.*views={int((140 - fixed - 30) / view)} fit"):
        check_size(DetectorSettings(max_megabytes=140), 256, 256, 20_000, 2, 30.0)
    with pytest.raises(ValueError, match="views >= 1"):
        DetectorSettings(views=0)
    with pytest.raises(ValueError, match=r"oversampling in 1 to 4.* got .* 0.5, 192 and"):
        DetectorSettings(oversampling=0.5)


@pytest.mark.parametrize(
    ("size", "drawn_size", "drawn", "expected"),
    [(0, 0, True, (200, 256)), (0, 0, False, (256, 256)), (96, 0, True, (96, 96)), (96, 128, True, (96, 128)),
     (0, 128, True, (200, 128)), (96, 128, False, (96, 96))],
)  # fmt: skip
def test_poses_are_estimated_in_smaller_windows_than_references_are_compared_in(size, drawn_size, drawn, expected):
    assert DetectorSettings(size=size, drawn_size=drawn_size).sizes(drawn=drawn) == expected
