from __future__ import annotations

import numpy as np
import pytest
import torch

from mask2former.structures import MaskTrack, bitmasks_to_rles, track_ious


def test_mask_track_gives_back_the_masks_of_each_frame() -> None:
    masks = torch.rand(5, 7, 11) > 0.5
    masks[2] = False
    rles = bitmasks_to_rles(masks)
    track = MaskTrack({frame: rles[frame] for frame in (0, 1, 3, 4)}, num_frames=5, image_size=(7, 11))
    assert (track.shape, len(track)) == ((5, 7, 11), 5)
    assert torch.equal(track.to_tensor(), masks)
    assert torch.equal(track[-1], masks[4])
    assert track.to_rles() == rles
    with pytest.raises(IndexError, match="frame 5 of 5"):
        track[5]


def test_mask_track_without_a_mask_is_empty() -> None:
    track = MaskTrack({}, num_frames=3, image_size=(2, 2))
    assert track.to_rles() == bitmasks_to_rles(np.zeros((3, 2, 2), bool))
    assert not track.to_tensor().any()
    assert MaskTrack({}, num_frames=0, image_size=(2, 2)).to_tensor().shape == (0, 2, 2)


def test_track_ious_sum_over_frames() -> None:
    first, second = torch.rand(2, 3, 9, 8) > 0.4, torch.rand(4, 3, 9, 8) > 0.6
    second[3] = False
    intersections, unions = track_ious(
        [bitmasks_to_rles(masks) for masks in first], [bitmasks_to_rles(masks) for masks in second]
    )
    assert intersections == pytest.approx((first[:, None] & second).sum((2, 3, 4)).numpy())
    assert unions == pytest.approx((first[:, None] | second).sum((2, 3, 4)).numpy())


def test_track_ious_of_none_are_empty() -> None:
    assert [values.shape for values in track_ious([], [[]])] == [(0, 1), (0, 1)]
