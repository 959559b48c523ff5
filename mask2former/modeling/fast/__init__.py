"""Speed on a CPU: what takes the place of plain layers in a built model, for training and for inference.

One pass, `accelerate`, gives each part it knows the class of a faster twin: the same parameters under the same names,
the same results up to rounding. A twin computes as the plain layer does wherever its own way is not right: off the CPU,
under tracing and compilation, in other types, and where hooks look on. `prepare_for_inference` goes further.
"""

from mask2former.modeling.fast import convolution, encoder, layers  # noqa: F401  (they declare their twins)
from mask2former.modeling.fast.preparation import prepare_for_inference
from mask2former.modeling.fast.twins import accelerate, use_channels_last

__all__ = ["accelerate", "prepare_for_inference", "use_channels_last"]
