"""Trace a model into one graph whose batch, height and width are free, unless a size is fixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.experimental._config as symbols_config
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram

from mask2former.errors import ConfigError
from mask2former.export.graph import MAX_SIDE, PixelsToOutputs
from mask2former.export.lowering import lowered_operators
from mask2former.structures.tasks import TASKS

_MAX_BATCH = 1 << 10
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)
_ATTENTION, _COPY = torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.clone.default
_EXAMPLE_CELLS = (3, 5)  # the sides of the example in multiples of the divisor: neither equal nor 1


def example_inputs(graph: PixelsToOutputs, *, size: tuple[int, int] | None, takes_size: bool) -> dict[str, Any]:
    """Return inputs by name to trace the graph with."""
    height, width = size or (cells * graph.divisor - 2 for cells in _EXAMPLE_CELLS)
    images = torch.randint(0, 256, (2, height, width, len(graph.model.pixel_mean)), dtype=torch.uint8)
    inputs = {"images": images}
    if takes_size:
        inputs["output_size"] = torch.tensor([height + 5, width + 9])
    if graph.takes_task:
        inputs["task"] = torch.tensor([0, len(TASKS) - 1])
    return inputs


def trace(
    graph: PixelsToOutputs,
    inputs: dict[str, Any],
    *,
    size: tuple[int, int] | None,
    image_dtype: torch.dtype,
    sampling: str,
) -> ExportedProgram:
    """Return the program of a graph for any batch, and for any height and width unless ``size`` fixes them.

    ``sampling``: what computes deformable attention, see ``lowering``.

    Raises:
        ConfigError: a part of the model, such as DiNAT's padding, depends on the size, and none is given.
    """
    inputs = {**inputs, "images": inputs["images"].to(image_dtype)}
    # Maps of one pixel are another case for torch, so the smallest image has two of the coarsest.
    least = graph.divisor + 1
    batch = Dim("batch", min=2 if graph.model.takes_clips else 1, max=_MAX_BATCH)
    axes: dict[int, Any] = {0: batch}
    if size is None:
        axes |= {1: Dim("height", min=least, max=MAX_SIDE), 2: Dim("width", min=least, max=MAX_SIDE)}
    others = {"output_size": None, "task": {0: batch}}
    shapes: dict[str, Any] = {"images": axes, **{name: others[name] for name in inputs if name in others}}
    with torch.no_grad(), _free_sizes(), lowered_operators(sampling):
        try:
            program = torch.export.export(
                graph,
                (),
                kwargs=inputs,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except UserError as error:
            if size is not None or "height" not in str(error):
                raise
            raise ConfigError("--size: needed, since a part of this model is another one at another size") from error
    _free_of_strides(program)
    return program


def _free_of_strides(program: ExportedProgram) -> None:
    """Undo what torch concluded from the sizes and strides that tensors had while it traced.

    Tests of sizes, such as that a map has several windows, are dropped: the operators are right without them at any
    size, which the verification of other sizes proves. Results of attention, which a converter may compute with other
    strides, are copied before they are reshaped.
    """
    nodes = program.graph_module.graph
    for node in list(nodes.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            nodes.erase_node(node)
        elif node.target in _VIEWS and _is_transposed_attention(node.args[0]):
            source = node.args[0]
            with nodes.inserting_before(node):
                copied = nodes.call_function(_COPY, (source,), {"memory_format": torch.contiguous_format})
            copied.meta = dict(source.meta)
            node.replace_input_with(source, copied)
    nodes.eliminate_dead_code()
    program.graph_module.recompile()


def _is_transposed_attention(node: Any) -> bool:
    return node.target is torch.ops.aten.transpose.int and node.args[0].target is _ATTENTION


@contextlib.contextmanager
def _free_sizes() -> Iterator[None]:
    """Treat no size as special: a graph traced at one size is not to assume that another is not 1."""
    before = symbols_config.backed_size_oblivious
    symbols_config.backed_size_oblivious = True
    try:
        yield
    finally:
        symbols_config.backed_size_oblivious = before
