from segmentation_extras import (
    backbone,
    command,
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
    "command",
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
