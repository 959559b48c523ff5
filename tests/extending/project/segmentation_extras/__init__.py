from segmentation_extras import (
    backbone,
    data_format,
    evaluator,
    hook,
    loss,
    mapper,
    matcher,
    pixel_decoder,
    postprocessing,
    tracker,
    transformer_decoder,
)

__all__ = [
    "backbone",
    "data_format",
    "evaluator",
    "hook",
    "loss",
    "mapper",
    "matcher",
    "pixel_decoder",
    "postprocessing",
    "tracker",
    "transformer_decoder",
]
