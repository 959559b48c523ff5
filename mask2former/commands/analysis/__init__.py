"""What a model costs: operations, activations and parameters by module, and seconds by stage."""

from mask2former.commands.analysis.counting import Counts, count_activations, count_flops
from mask2former.commands.analysis.inputs import random_sample, usual_size
from mask2former.commands.analysis.timing import StageTimer, peak_memory

__all__ = [
    "Counts",
    "StageTimer",
    "count_activations",
    "count_flops",
    "peak_memory",
    "random_sample",
    "usual_size",
]
