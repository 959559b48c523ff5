"""Point sampling against published values, and the properties of uncertain points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mask2former.ops import native, point_sample, point_sampling, sample_uncertain_points

REFERENCE = Path(__file__).parents[1] / "data/reference/ops.npz"


def test_point_sample_equals_published_values() -> None:
    with np.load(REFERENCE) as archive:
        maps, coords, expected = (
            torch.from_numpy(archive[f"point_sample/{k}"]) for k in ("input", "coords_xy", "output")
        )
    torch.testing.assert_close(point_sample(maps, coords), expected, rtol=0, atol=1e-6)


def test_point_sample_reads_pixel_centres_and_zero_outside() -> None:
    maps = torch.arange(15.0).reshape(1, 1, 3, 5)
    ys, xs = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    coords = torch.stack([xs, ys], -1).reshape(1, 15, 2)
    torch.testing.assert_close(point_sample(maps, coords).flatten(), maps.flatten())
    assert (point_sample(maps, coords + 2) == 0).all()


@pytest.mark.parametrize(("num_maps", "channels", "num_points"), [(0, 2, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)])
def test_point_sample_of_nothing_is_empty_and_connected(num_maps: int, channels: int, num_points: int) -> None:
    maps = torch.randn(num_maps, channels, 4, 5, requires_grad=True)
    sampled = point_sample(maps, torch.rand(num_maps, num_points, 2))
    assert sampled.shape == (num_maps, channels, num_points)
    sampled.sum().backward()
    assert maps.grad is not None


def test_point_sample_keeps_half_precision_and_samples_precisely() -> None:
    maps, coords = torch.randn(2, 3, 33, 200), torch.rand(2, 50, 2)
    sampled = point_sample(maps.bfloat16(), coords)
    assert sampled.dtype == torch.bfloat16
    assert torch.equal(sampled, point_sample(maps.bfloat16().float(), coords).bfloat16())


@pytest.mark.parametrize(
    ("maps", "coords", "message"),
    [
        (torch.zeros(3, 4, 5), torch.zeros(3, 2, 2), r"input must have shape \(N, C, H, W\), got \(3, 4, 5\)"),
        (torch.zeros(3, 1, 4, 5), torch.zeros(2, 2, 2), r"coords_xy must have shape \(3, P, 2\), got \(2, 2, 2\)"),
        (torch.zeros(3, 1, 4, 5), torch.zeros(3, 2, 3), r"coords_xy must have shape \(3, P, 2\), got \(3, 2, 3\)"),
    ],
)
def test_point_sample_names_the_wrong_shape(maps: torch.Tensor, coords: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        point_sample(maps, coords)


def _sample(logits: torch.Tensor, **changes) -> torch.Tensor:
    arguments = {"num_points": 40, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75, **changes}
    return sample_uncertain_points(logits, **arguments)


def test_sample_uncertain_points_prefers_small_logits() -> None:
    columns = torch.linspace(-4, 4, 64)
    logits = columns.expand(5, 1, 48, 64)  # uncertain along the middle column
    coords = _sample(logits)
    assert coords.shape == (5, 40, 2)
    assert coords.min() >= 0
    assert coords.max() <= 1
    distance = (coords[..., 0] - 0.5).abs()
    assert distance[:, :30].max() < 0.3  # 30 of 120 uniform points: a quarter of the width, and some slack
    assert distance[:, 30:].max() > 0.3  # the rest is drawn anywhere


@pytest.mark.parametrize(("ratio", "num_uncertain"), [(0.0, 0), (0.33, 13), (1.0, 40)])
def test_sample_uncertain_points_orders_the_uncertain_first(ratio: float, num_uncertain: int) -> None:
    logits = torch.randn(2, 1, 9, 7)
    coords = _sample(logits, importance_sample_ratio=ratio)
    size = point_sample(logits, coords).abs().squeeze(1)
    assert coords.shape == (2, 40, 2)
    assert (size[:, :num_uncertain].diff(dim=1) >= -1e-6).all()


def test_sample_uncertain_points_draws_as_torch_does() -> None:
    logits = torch.randn(3, 1, 5, 6)
    torch.manual_seed(3)
    candidates, rest = torch.rand(3, 120, 2), torch.rand(3, 10, 2)
    torch.manual_seed(3)
    coords = _sample(logits)
    assert torch.equal(coords[:, 30:], rest)
    assert all((candidates[i] == point).all(-1).any() for i in range(3) for point in coords[i, :30])
    seeded = [_sample(logits, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*seeded)


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize(("importance_sample_ratio", "num_maps"), [(0.75, 9), (1.0, 2), (0.0, 2)])
def test_points_of_the_kernel_are_those_of_torch(
    importance_sample_ratio: float, num_maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_sampling, "_BLOCK_BYTES", 4 * 1200 * 8)  # four maps at a time
    logits = torch.randn(num_maps, 1, 11, 6)
    options = {"num_points": 400, "importance_sample_ratio": importance_sample_ratio}
    torch.manual_seed(3)
    with monkeypatch.context() as patch:
        patch.delattr(point_sampling, "_least_certain")  # the kernel serves
        found = _sample(logits, **options)
    monkeypatch.setattr(native, "cpu_library", lambda: None)
    torch.manual_seed(3)
    expected = _sample(logits, **options)
    num_uncertain = int(400 * importance_sample_ratio)
    assert torch.equal(found[:, num_uncertain:], expected[:, num_uncertain:])
    # Only where values are equal up to rounding may the order be another.
    values = [point_sample(logits, points[:, :num_uncertain]).abs() for points in (found, expected)]
    torch.testing.assert_close(*values, atol=1e-6, rtol=1e-5)
    is_other = (found != expected).any(-1)
    assert is_other.float().mean() < 0.02


@pytest.mark.usefixtures("cpu_library")
def test_kernel_takes_points_at_the_edges_and_maps_of_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = torch.tensor([[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: corners[None].clone())
    options = {"num_points": 9, "oversample_ratio": 1.0, "importance_sample_ratio": 1.0}
    for size in ((1, 1), (3, 2)):
        logits = 1 + torch.rand_like(torch.empty(1, 1, *size))
        found = _sample(logits, **options)
        values = point_sample(logits, found).squeeze()
        torch.testing.assert_close(values, point_sample(logits, corners[None]).squeeze().sort().values)


@pytest.mark.usefixtures("cpu_library")
def test_uncertain_points_avoid_logits_that_are_no_numbers() -> None:
    logits = torch.randn(1, 1, 4, 6)
    logits[..., :3] = float("nan")
    coords = _sample(logits, num_points=200, importance_sample_ratio=0.1)
    assert (coords[:, :20, 0] > 0.5).all()


def test_uncertain_points_of_a_batch_of_vmap() -> None:
    logits = torch.randn(3, 4, 1, 9, 7)
    found = torch.func.vmap(_sample, randomness="different")(logits)
    assert found.shape == (3, 4, 40, 2)
    certainty = point_sample(logits.flatten(0, 1), found.flatten(0, 1)).abs().squeeze(1)
    assert (certainty[:, :30].diff(dim=1) >= -1e-6).all()


def test_sample_uncertain_points_of_no_maps_is_empty() -> None:
    assert _sample(torch.zeros(0, 1, 5, 6)).shape == (0, 40, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 0}, "num_points must be positive, got 0"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"importance_sample_ratio": 1.5}, r"importance_sample_ratio must lie in \[0, 1\], got 1.5"),
        ({"logits": torch.zeros(2, 3, 4, 4)}, r"logits must have shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"),
    ],
)
def test_sample_uncertain_points_names_the_wrong_argument(changes: dict, message: str) -> None:
    logits = changes.pop("logits", torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=message):
        _sample(logits, **changes)
