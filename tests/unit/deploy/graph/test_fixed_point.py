# SPDX-License-Identifier: Apache-2.0
import torch

from anomalib_pose.deploy.graph.fixed_point import from_fixed, to_fixed


def test_fixed_point_keeps_numbers_to_half_a_step():
    values = 4094 * torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2047
    values[:500] /= 1000
    fixed = to_fixed(values.float())
    assert fixed.dtype == torch.int32
    assert ((fixed.double() / 2**20) - values.float()).abs().max() <= 0.5 / 2**20
    torch.testing.assert_close(from_fixed(fixed), values.float(), atol=1e-6, rtol=1e-6)
