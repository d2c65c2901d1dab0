"""Which photos share the statistics of batch norm."""

from __future__ import annotations

import pytest

from fashion_jax.training.placement import norm_groups


@pytest.mark.parametrize(
    ("photos", "devices", "least", "groups"),
    [
        (128, 1, 128, 1),
        (128, 8, 128, 1),
        (256, 1, 128, 2),
        (1024, 8, 128, 8),  # one group on each device
        (2048, 8, 128, 16),
        (2048, 16, 128, 16),
        (512, 16, 128, 4),  # of four devices
        (512, 16, 100, 4),
        (1536, 8, 128, 8),  # 12 groups would cut the photos of a device
        (1536, 1, 128, 12),
        (384, 3, 100, 3),
        (32, 8, 128, 1),
        (16, 8, 1, 16),
    ],
)
def test_groups_are_large_and_cut_no_device(photos, devices, least, groups):
    assert norm_groups(photos, devices, least) == groups
    assert groups == 1 or photos // groups >= least
