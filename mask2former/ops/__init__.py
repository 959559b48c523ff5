"""Operators with native kernels behind them, and point sampling."""

from mask2former.ops.convolution import WinogradWeight, conv3x3, is_winograd_faster
from mask2former.ops.deformable_attention import ms_deform_attn, ms_deform_attn_around, ms_deform_attn_reference
from mask2former.ops.native import kernel_status
from mask2former.ops.point_sampling import point_sample, sample_uncertain_points

__all__ = [
    "WinogradWeight",
    "conv3x3",
    "is_winograd_faster",
    "kernel_status",
    "ms_deform_attn",
    "ms_deform_attn_around",
    "ms_deform_attn_reference",
    "point_sample",
    "sample_uncertain_points",
]
