"""Sampling of maps at points, and the choice of points where a mask is uncertain (arXiv:1912.08193, sec. 3.1).

Letters: N maps, C channels, H W size, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mask2former.ops import native

_BLOCK_BYTES = 1 << 23  # of candidates at a time on a CPU: memory that is used again need not be cleared


def point_sample(input: Tensor, coords_xy: Tensor) -> Tensor:
    """Return bilinear samples (N, C, P) of maps (N, C, H, W) at points (N, P, 2).

    Points are (x, y), 0 to 1 from edge to edge, so pixel centres lie at (i + 0.5) / size; outside the map is zero. The
    result has the dtype of the input; half-precision maps are sampled in the precision of the coordinates.

    Raises:
        ValueError: a wrong shape.
    """
    if input.ndim != 4:
        raise ValueError(f"input must have shape (N, C, H, W), got {tuple(input.shape)}")
    if coords_xy.ndim != 3 or coords_xy.shape[0] != input.shape[0] or coords_xy.shape[2] != 2:
        raise ValueError(f"coords_xy must have shape ({input.shape[0]}, P, 2), got {tuple(coords_xy.shape)}")
    if input.numel() == 0 or coords_xy.numel() == 0:  # grid_sample refuses some of these; stay in the graph
        return input.new_zeros(*input.shape[:2], coords_xy.shape[1]) + 0 * (input.sum() + coords_xy.sum())
    dtype = torch.promote_types(input.dtype, coords_xy.dtype)
    grid = 2 * coords_xy.to(dtype).unsqueeze(2) - 1  # (N, P, 1, 2)
    sampled = functional.grid_sample(input.to(dtype), grid, "bilinear", "zeros", align_corners=False)  # (N, C, P, 1)
    return sampled.squeeze(3).to(input.dtype)


@torch.no_grad()
def sample_uncertain_points(
    logits: Tensor,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return points (N, num_points, 2) as (x, y) in [0, 1], mostly where logits (N, 1, H, W) are near zero.

    Of int(num_points * oversample_ratio) uniformly random points, int(importance_sample_ratio * num_points) with the
    smallest |logit| come first, in ascending order, NaN last; the rest are fresh random points. Random numbers come
    from ``generator``, by default torch's global one.

    Raises:
        ValueError: a wrong shape or ratio.
    """
    if logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(f"logits must have shape (N, 1, H, W), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if num_points < 1:
        raise ValueError(f"num_points must be positive, got {num_points}")
    if oversample_ratio < 1:
        raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
    if not 0 <= importance_sample_ratio <= 1:
        raise ValueError(f"importance_sample_ratio must lie in [0, 1], got {importance_sample_ratio}")
    num_maps, num_uncertain = logits.shape[0], int(importance_sample_ratio * num_points)
    num_candidates = int(num_points * oversample_ratio)

    def draw(num_maps: int, num_points: int) -> Tensor:
        return torch.rand(num_maps, num_points, 2, generator=generator, dtype=torch.float32, device=logits.device)

    is_served = native.is_eager_cpu_inference(logits) and logits.dtype == torch.float32 and logits.numel() > 0
    if is_served and native.cpu_library() is not None:
        # Drawn in parts, torch's numbers on the CPU are those of a whole.
        parts = logits.contiguous().split(max(1, _BLOCK_BYTES // (8 * num_candidates)))
        chosen = [_least_certain_in_one_pass(part, draw(len(part), num_candidates), num_uncertain) for part in parts]
        uncertain = torch.cat(chosen)
    else:
        uncertain = _least_certain(logits, draw(num_maps, num_candidates), num_uncertain)
    if num_uncertain == num_points:
        return uncertain
    return torch.cat([uncertain, draw(num_maps, num_points - num_uncertain)], dim=1)


def _least_certain(logits: Tensor, candidates: Tensor, num_chosen: int) -> Tensor:
    """Return of points (N, P, 2) the (N, num_chosen, 2) with the smallest |logit|, in ascending order."""
    certainty = point_sample(logits, candidates).squeeze(1).abs()  # (N, P)
    chosen = certainty.topk(num_chosen, dim=1, largest=False).indices  # (N, num_chosen)
    return candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))


def _least_certain_in_one_pass(logits: Tensor, candidates: Tensor, num_chosen: int) -> Tensor:
    """Do the same for contiguous logits and finite contiguous coordinates in float32 on the CPU."""
    library = native.cpu_library()
    assert library is not None
    chosen = candidates.new_empty(len(candidates), num_chosen, 2)
    status = library.m2f_uncertain_points(
        *(logits.data_ptr(), len(logits), *logits.shape[2:], candidates.data_ptr(), candidates.shape[1]),
        *(num_chosen, chosen.data_ptr(), torch.get_num_threads()),
    )
    native.check_status(status)
    return chosen
