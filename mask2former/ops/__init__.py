"""Operators with native kernels behind them, and point sampling."""

from mask2former.ops.attention import is_attention_faster, masked_attention
from mask2former.ops.convolution import (
    WinogradWeight,
    conv3x3,
    is_trained_winograd_faster,
    is_winograd_faster,
    trained_conv3x3,
)
from mask2former.ops.deformable_attention import ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_reference
from mask2former.ops.maps import (
    add_layer_norm_,
    add_product_relu_,
    add_resized,
    group_norm_relu_,
    is_map_written_over,
    multiply_maps,
)
from mask2former.ops.masks import (
    MaskStrip,
    MaskWinners,
    bands_of,
    mask_strip,
    mask_winners,
    pixels_at_once,
)
from mask2former.ops.native import is_eager_cpu, is_eager_cpu_inference, kernel_status
from mask2former.ops.neighbourhood_attention import neighbourhood_attention, neighbourhood_attention_reference
from mask2former.ops.panoptic_maps import joint_histogram, unfilter_ids
from mask2former.ops.point_sampling import point_sample, sample_uncertain_points

__all__ = [
    "MaskStrip",
    "MaskWinners",
    "WinogradWeight",
    "add_layer_norm_",
    "add_product_relu_",
    "add_resized",
    "bands_of",
    "conv3x3",
    "group_norm_relu_",
    "is_attention_faster",
    "is_eager_cpu",
    "is_eager_cpu_inference",
    "is_map_written_over",
    "is_trained_winograd_faster",
    "is_winograd_faster",
    "joint_histogram",
    "kernel_status",
    "mask_strip",
    "mask_winners",
    "masked_attention",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_reference",
    "multiply_maps",
    "neighbourhood_attention",
    "neighbourhood_attention_reference",
    "pixels_at_once",
    "point_sample",
    "sample_uncertain_points",
    "trained_conv3x3",
    "unfilter_ids",
]
