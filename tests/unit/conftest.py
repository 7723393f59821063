# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from anomalib_pose.sample_data.chairs import write_chairs


@pytest.fixture(scope="session")
def chairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chairs from seed 1 with 12 reference views of each, and four photographs of 128 x 128 pixels."""
    return write_chairs(tmp_path_factory.mktemp("data") / "chairs", 3, 4, 1, size=128, views=12, progress=False)
