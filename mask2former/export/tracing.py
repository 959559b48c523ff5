"""Trace a model into one graph whose batch, height and width are free, unless a size is fixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.experimental._config as symbols_config
from torch.export import Dim, ExportedProgram

from mask2former.export.graph import MAX_SIDE, PixelsToOutputs
from mask2former.export.lowering import sampling_forward
from mask2former.ops.deformable_attention import replaced_operator

_MAX_BATCH = 1 << 10
_EXAMPLE_CELLS = (3, 5)  # the sides of the example in multiples of the divisor: neither equal nor 1


def example_inputs(graph: PixelsToOutputs, *, size: tuple[int, int] | None, takes_size: bool) -> dict[str, Any]:
    """Return inputs by name to trace the graph with."""
    height, width = size or (cells * graph.divisor - 2 for cells in _EXAMPLE_CELLS)
    images = torch.randint(0, 256, (2, height, width, len(graph.model.pixel_mean)), dtype=torch.uint8)
    if not takes_size:
        return {"images": images}
    return {"images": images, "output_size": torch.tensor([height + 5, width + 9])}


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
    """
    inputs = {**inputs, "images": inputs["images"].to(image_dtype)}
    # Maps of one pixel are another case for torch, so the smallest image has two of the coarsest.
    least = graph.divisor + 1
    axes: dict[int, Any] = {0: Dim("batch", min=2 if graph.model.takes_clips else 1, max=_MAX_BATCH)}
    if size is None:
        axes |= {1: Dim("height", min=least, max=MAX_SIDE), 2: Dim("width", min=least, max=MAX_SIDE)}
    shapes: dict[str, Any] = {"images": axes, **({"output_size": None} if "output_size" in inputs else {})}
    with torch.no_grad(), _free_sizes(), replaced_operator(sampling_forward(sampling)):
        program = torch.export.export(
            graph,
            (),
            kwargs=inputs,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_assertions(program)
    return program


def _drop_assertions(program: ExportedProgram) -> None:
    """Drop the tests of sizes that torch added while it chose strides, such as that a map has several windows.

    The operators are right without them at any size, which the verification of other sizes proves.
    """
    nodes = program.graph_module.graph
    for node in list(nodes.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            nodes.erase_node(node)
    nodes.eliminate_dead_code()
    program.graph_module.recompile()


@contextlib.contextmanager
def _free_sizes() -> Iterator[None]:
    """Treat no size as special: a graph traced at one size is not to assume that another is not 1."""
    before = symbols_config.backed_size_oblivious
    symbols_config.backed_size_oblivious = True
    try:
        yield
    finally:
        symbols_config.backed_size_oblivious = before
