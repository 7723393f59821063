# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest
import torch

from anomalib_pose.render.compiled import _Sharing, for_ranges
from anomalib_pose.render.threads import small_operations, thread_count


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def parts() -> int:
    """Number of ranges that a kernel over many items is split into."""
    ranges = []
    for_ranges(lambda start, stop: ranges.append((start, stop)), 1000)
    assert sorted(ranges)[0][0] == 0
    assert sum(stop - start for start, stop in ranges) == 1000
    return len(ranges)


@pytest.mark.usefixtures("three_threads")
def test_operations_have_one_thread_and_kernels_all():
    outside = parts()
    with small_operations():
        assert torch.get_num_threads() == 1
        assert thread_count() == 3
        assert parts() == outside > 1
        with small_operations():
            assert thread_count() == 3
    assert torch.get_num_threads() == thread_count() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_restores_the_threads():
    with pytest.raises(RuntimeError, match="stop"), small_operations():
        msg = "stop"
        raise RuntimeError(msg)
    assert torch.get_num_threads() == thread_count() == 3


def test_one_thread_stays_one_thread():
    with small_operations():
        assert thread_count() == torch.get_num_threads() == 1
        assert parts() == 1


def test_long_waits_for_other_threads_pause_the_sharing_of_work():
    sharing = _Sharing()
    assert sharing.pays()
    sharing.record(worked=1.0, waited=2.0)
    assert [sharing.pays() for _ in range(2)] == [False, True]
    sharing.record(worked=1.0, waited=2.0)
    assert [sharing.pays() for _ in range(4)] == [False, False, False, True]
    sharing.record(worked=1.0, waited=0.1)
    assert [sharing.pays() for _ in range(2)] == [False, True]
    sharing.record(worked=1.0, waited=0.1)
    assert sharing.pays()
