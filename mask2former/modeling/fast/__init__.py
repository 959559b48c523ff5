"""Speed on a CPU: faster replacements of plain layers in a built model, for training and for inference.

``accelerate`` makes one pass and replaces the class of each layer that it knows by a faster twin: the same parameters
under the same names, the same results up to rounding. A twin falls back to the plain computation off the CPU, under
tracing and compilation, in other dtypes, and where hooks are registered. ``prepare_for_inference`` goes further.
"""

from mask2former.modeling.fast import convolution, encoder, layers  # noqa: F401  (they declare their twins)
from mask2former.modeling.fast.preparation import prepare_for_inference
from mask2former.modeling.fast.twins import accelerate, speed_up, use_channels_last

__all__ = ["accelerate", "prepare_for_inference", "speed_up", "use_channels_last"]
