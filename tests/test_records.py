import numpy as np
import pytest

from longtake.records import known_track


@pytest.mark.parametrize(
    ("by", "same_px", "mode"), [(0.0, 0.0, "static"), (1e-9, 0.0, "per_frame"), (1e-9, 1e-6, "static")]
)
def test_what_counts_as_one_set_of_intrinsics(by, same_px, mode):
    intrinsics = np.tile([500.0, 500.0, 320.0, 240.0], (3, 1))
    intrinsics[2, 0] += by
    track = known_track(
        pts_ns=np.arange(3),
        world_from_cam=np.tile(np.eye(4), (3, 1, 1)),
        intrinsics=intrinsics,
        width=640,
        height=480,
        motion_class="static",
        scale_kind="metric",
        pose_source="imported",
        same_px=same_px,
    )
    assert track.intrinsics_mode == mode
