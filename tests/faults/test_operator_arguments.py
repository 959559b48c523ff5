"""Exported operators called with arguments that do not fit: an error of Python or the right answer, never a crash."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former import ops
from mask2former.ops.masks import Bands

_CALLS = 400  # of each operator
_Arguments = dict[str, Any]


def _attention(a: _Arguments) -> Tensor:
    heads = a["num_heads"]
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a["query"], a["key"], a["value"]))
    heads_output = F.scaled_dot_product_attention(query, key, value, attn_mask=a["attend_mask"])
    is_blind = ~a["attend_mask"].any(-1).transpose(1, 2)  # (B, Q, 1): of queries that see no token
    return heads_output.transpose(1, 2).flatten(2).masked_fill(is_blind, float("nan"))


def _group_norm(a: _Arguments) -> Tensor:
    return F.relu(F.group_norm(a["x"], a["num_groups"], a["weight"], a["bias"], a["eps"]))


def _layer_norm(a: _Arguments) -> Tensor:
    return F.layer_norm(a["x"] + a["y"], a["x"].shape[-1:], a["weight"], a["bias"], a["eps"])


def _product(a: _Arguments) -> Tensor:
    return F.relu(a["x"] + F.conv2d(a["factor"], a["weight"][..., None, None], a["bias"]))


def _resized(a: _Arguments) -> Tensor:
    return a["x"] + F.interpolate(a["above"], size=a["x"].shape[-2:], mode="bilinear")


def _convolution(a: _Arguments) -> Tensor:
    return F.conv2d(a["x"], a["weight"] * a["scale"].double()[:, None, None, None], a["shift"].double(), padding=1)


def _winners(a: _Arguments) -> Tensor:
    return (a["probs"] * a["weights"][:, None, None]).argmax(0)


def _deformable(a: _Arguments) -> Tensor:
    return ops.ms_deform_attn_reference(**a)


def _neighbourhood(a: _Arguments) -> Tensor:
    return ops.neighbourhood_attention_reference(**a)


def _fused(a: _Arguments) -> Tensor:
    sizes = torch.tensor([(width, height) for height, width in a["spatial_shapes"]], dtype=torch.float64)
    places = a["centres"][:, None, None, None] + a["offsets"] / sizes[:, None]
    weights = a["logits"].double().flatten(-2).softmax(-1).view(a["logits"].shape)
    return ops.ms_deform_attn_reference(a["value"], a["spatial_shapes"], places, weights)


def _directly(a: _Arguments) -> Tensor:
    flat = [int(side) for shape in a["spatial_shapes"] for side in shape]
    return torch.ops.mask2former.ms_deform_attn(a["value"], flat, a["sampling_locations"], a["attention_weights"])


def _uncertain(a: _Arguments) -> Tensor:
    """How uncertain the points are: which come first of two that are equally so is left open."""
    torch.manual_seed(0)
    return ops.point_sample(a["logits"].double(), ops.sample_uncertain_points(**a).double()).abs()


def _joint_histogram(a: _Arguments) -> Tensor:
    return torch.from_numpy(ops.joint_histogram(**{name: value.numpy() for name, value in a.items()}))


def _counted(a: _Arguments) -> Tensor:
    truth_ids, predicted_ids = a["truth_ids"].tolist(), a["predicted_ids"].tolist()
    joint = torch.zeros(1 + len(truth_ids), 1 + len(predicted_ids))
    for truth, predicted in zip(a["truth"].flatten().tolist(), a["prediction"].flatten().tolist(), strict=True):
        row = 1 + truth_ids.index(truth) if truth in truth_ids else 0
        joint[row, 1 + predicted_ids.index(predicted) if predicted in predicted_ids else 0] += 1
    return joint


def _unfiltered(a: _Arguments) -> Tensor:
    ids = ops.unfilter_ids(a["data"].numpy().tobytes(), (a["height"], a["width"]))
    assert ids is not None, "refused"
    return torch.from_numpy(ids)


def _rows_without_filter(a: _Arguments) -> Tensor:
    pixels = a["data"].double().flatten().view(a["height"], -1)[:, 1:].reshape(a["height"], -1, 3)
    return pixels @ torch.tensor([1.0, 256.0, 65536.0], dtype=torch.float64)


def _strip(a: _Arguments) -> Tensor:
    bands = {name: Bands(a[f"first_{name}"], a[f"weights_{name}"]) for name in ("rows", "columns")}
    part = slice(a["start"], a["stop"])
    return ops.mask_strip(a["maps"], part, resize=_refuse, least_logit=0.0, **bands).probs


def _refuse(*_: Any) -> Any:
    raise ValueError("no kernel takes these")


def _strip_by_products(a: _Arguments) -> Tensor:
    matrices = []
    for name, size in (("rows", a["maps"].shape[1]), ("columns", a["maps"].shape[2])):
        first, weights = a[f"first_{name}"].long(), a[f"weights_{name}"]
        matrix = torch.zeros(len(first), size, dtype=torch.float64)
        matrices.append(matrix.scatter_(1, first[:, None] + torch.arange(weights.shape[1]), weights))
    resized = torch.einsum("hi,nij,wj->nhw", matrices[0], a["maps"], matrices[1])
    return resized[:, a["start"] : a["stop"]].sigmoid()


def _band(size: int, target: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(target, dtype=torch.int32) % (size - 1)
    return first, torch.rand(target, 2)


def _strip_arguments() -> _Arguments:
    (first_rows, weights_rows), (first_columns, weights_columns) = _band(8, 11), _band(6, 9)
    return {
        "maps": torch.randn(3, 8, 6),
        "first_rows": first_rows,
        "weights_rows": weights_rows,
        "first_columns": first_columns,
        "weights_columns": weights_columns,
        "start": 2,
        "stop": 9,
    }


def _nhwc(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


# Arguments that fit; the same in other operators; how to get what is compared out of the result.
_OPERATORS: dict[str, tuple[Callable[[], _Arguments], Callable[[_Arguments], Tensor], Callable[[Any], Tensor]]] = {
    "masked_attention": (
        lambda: {
            **{name: torch.randn(2, size, 64) for name, size in (("query", 5), ("key", 70), ("value", 70))},
            "attend_mask": torch.rand(2, 1, 5, 70) > 0.3,
            "num_heads": 2,
        },
        _attention,
        lambda result: result,
    ),
    "group_norm_relu_": (
        lambda: {
            "x": _nhwc(2, 32, 5, 7),
            "num_groups": 4,
            "eps": 1e-5,
            "relu": True,
            "weight": torch.randn(32),
            "bias": torch.randn(32),
        },
        _group_norm,
        lambda result: result,
    ),
    "add_layer_norm_": (
        lambda: {
            **{name: torch.randn(2, 5, 32) for name in ("x", "y")},
            "weight": torch.randn(32),
            "bias": torch.randn(32),
            "eps": 1e-5,
        },
        _layer_norm,
        lambda result: result,
    ),
    "add_product_relu_": (
        lambda: {
            "x": _nhwc(2, 32, 5, 7),
            "factor": _nhwc(2, 16, 5, 7),
            "weight": torch.randn(32, 16),
            "bias": torch.randn(32),
        },
        _product,
        lambda result: result,
    ),
    "add_resized": (lambda: {"x": _nhwc(2, 32, 8, 6), "above": _nhwc(2, 32, 4, 3)}, _resized, lambda result: result),
    "conv3x3": (
        lambda: {
            "x": _nhwc(1, 64, 32, 32),
            "weight": torch.randn(64, 64, 3, 3) / 24,
            "scale": torch.rand(64),
            "shift": torch.randn(64),
        },
        _convolution,
        lambda result: result,
    ),
    "mask_winners": (
        lambda: {"probs": torch.rand(4, 6, 9), "weights": torch.rand(4), "threshold": 0.5},
        _winners,
        lambda result: result.numbers // 2,
    ),
    "ms_deform_attn": (
        lambda: {
            "value": torch.randn(2, 20, 2, 16),
            "spatial_shapes": [(4, 4), (2, 2)],
            "sampling_locations": torch.rand(2, 5, 2, 2, 3, 2),
            "attention_weights": torch.rand(2, 5, 2, 2, 3),
        },
        _deformable,
        lambda result: result,
    ),
    "neighbourhood_attention": (
        lambda: {
            **{name: torch.randn(2, 6, 7, 2, 8) for name in ("query", "key", "value")},
            "bias": torch.randn(2, 5, 5),
            "kernel_size": 3,
            "dilation": 2,
            "scale": 0.5,
        },
        _neighbourhood,
        lambda result: result,
    ),
    "ms_deform_attn, called directly": (
        lambda: _OPERATORS["ms_deform_attn"][0](),
        _deformable,
        lambda result: result,
    ),
    "ms_deform_attn_fused": (
        lambda: {
            "value": torch.randn(2, 20, 2, 16),
            "spatial_shapes": [(4, 4), (2, 2)],
            "centres": torch.rand(5, 2),
            "offsets": torch.randn(2, 5, 2, 2, 3, 2),
            "logits": torch.randn(2, 5, 2, 2, 3),
        },
        _fused,
        lambda result: result,
    ),
    "sample_uncertain_points": (
        lambda: {
            "logits": torch.randn(3, 1, 9, 7),
            "num_points": 20,
            "oversample_ratio": 3.0,
            "importance_sample_ratio": 0.75,
        },
        _uncertain,
        lambda result: result,
    ),
    "joint_histogram": (
        lambda: {
            **{name: torch.randint(0, 6, (5, 7), dtype=torch.int32) for name in ("truth", "prediction")},
            "truth_ids": torch.tensor([1, 2, 5], dtype=torch.int32),
            "predicted_ids": torch.tensor([0, 4], dtype=torch.int32),
        },
        _counted,
        lambda result: result,
    ),
    "unfilter_ids": (
        lambda: {
            "data": F.pad(torch.randint(0, 256, (5, 21), dtype=torch.uint8), (1, 0)),
            "height": 5,
            "width": 7,
        },
        _rows_without_filter,
        lambda result: result,
    ),
    "mask_strip": (_strip_arguments, _strip_by_products, lambda result: result),
}
# How an operator is called whose arguments are no tensors and numbers.
_CALLED: dict[str, Callable[[_Arguments], Any]] = {
    "ms_deform_attn, called directly": _directly,
    "sample_uncertain_points": _uncertain,
    "joint_histogram": _joint_histogram,
    "unfilter_ids": _unfiltered,
    "mask_strip": _strip,
}


def _unaligned(x: Tensor) -> Tensor:
    """The same values one byte off the place where their type may lie."""
    if not x.numel():
        return x
    buffer = bytearray(x.numel() * x.element_size() + 1)
    moved = torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
    return moved.copy_(x)


_CHANGES: tuple[Callable[[Tensor, random.Random], Tensor], ...] = (
    lambda x, r: x.to(
        r.choice((torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64))
    ),
    lambda x, r: x.repeat_interleave(2, r.randrange(x.ndim)),
    lambda x, r: x.narrow(d := r.randrange(x.ndim), 0, max(x.shape[d] - 1, 0)),
    lambda x, r: x.narrow(r.randrange(x.ndim), 0, 0),
    lambda x, r: x.repeat_interleave(2, d := r.randrange(x.ndim))[(slice(None),) * d + (slice(None, None, 2),)],
    lambda x, r: x.transpose(r.randrange(x.ndim), r.randrange(x.ndim)),
    lambda x, r: x.transpose(0, -1).contiguous().transpose(0, -1),
    lambda x, r: x.contiguous(),
    lambda x, r: x[..., None],
    lambda x, r: x[0],
    lambda x, r: x.flatten(),
    lambda x, r: x.narrow(r.randrange(x.ndim), 0, 1).expand(x.shape),
    lambda x, r: x.to("meta"),
    lambda x, r: x.flip(r.randrange(x.ndim)),
    lambda x, r: _unaligned(x),
)
_NUMBERS = (0, -1, 1, 3, 5, 7, 64, 1 << 40)


def _change(arguments: _Arguments, rng: random.Random) -> None:
    name = rng.choice(sorted(arguments))
    value = arguments[name]
    if isinstance(value, Tensor) and value.ndim and value.numel():
        arguments[name] = rng.choice(_CHANGES)(value, rng)
    elif isinstance(value, int) and not isinstance(value, bool):
        arguments[name] = rng.choice(_NUMBERS)
    elif isinstance(value, list):
        arguments[name] = rng.choice(([(4, 4)], [(5, 4), (2, 2)], [(-4, -4), (2, 2)], [(1 << 31, 1 << 31), (2, 2)], []))


def _doubled(value: Any) -> Any:
    """A copy in float64, as the reference takes it, of all but masks."""
    is_number = isinstance(value, Tensor) and value.dtype != torch.bool and not value.is_complex()
    return value.double() if is_number else value


def call_with_ill_fitting(name: str, seed: int) -> int:
    """How many of the calls gave a right answer; raises AssertionError where one gave a wrong one."""
    make, reference, read = _OPERATORS[name]
    call_operator = _CALLED.get(name, lambda arguments: getattr(ops, name)(**arguments))
    rng, num_right = random.Random(seed), 0
    for call in range(_CALLS):
        torch.manual_seed(call)
        arguments = make()
        for _ in range(rng.choice((0, 1, 1, 1, 2)) if call else 0):
            _change(arguments, rng)
        print(
            "CALL",
            call,
            {k: (tuple(v.shape), v.stride(), v.dtype) if isinstance(v, Tensor) else v for k, v in arguments.items()},
        )
        copied = {key: _doubled(value) for key, value in arguments.items()}
        with torch.inference_mode():
            try:
                result = read(call_operator(arguments))
            except Exception:
                continue  # an error of Python is what is asked for
            if not result.numel() or result.is_meta:
                continue
            expected = reference(copied)
            torch.testing.assert_close(
                result.double(), expected.double(), rtol=2e-2, atol=5e-2, equal_nan=True, msg=lambda text: f"{text}"
            )
            num_right += 1
    return num_right


@pytest.mark.parametrize("name", sorted(_OPERATORS))
def test_operator_refuses_or_answers_rightly(name: str) -> None:
    module = "tests.faults.test_operator_arguments"
    script = f"from {module} import call_with_ill_fitting as call; print('RIGHT', call({name!r}, 0))"
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    last = [line for line in run.stdout.splitlines() if line.startswith("CALL")][-1:]
    assert run.returncode == 0, f"{last} {run.stderr[-1500:]}"
    assert int(run.stdout.rpartition("RIGHT")[2]) > _CALLS // 10
