from __future__ import annotations

import pytest
import torch

from mask2former.modeling.prediction import QueryPrediction, chosen_mask_logits, share_features
from mask2former.ops import multiply_maps


def random_layers(num_layers: int = 3, *, frames: int = 1, shared: bool = True) -> list[QueryPrediction]:
    features = torch.randn(2, frames, 8, 5, 7)
    return [
        QueryPrediction(torch.randn(2, 6, 4), torch.randn(2, 6, 8), features if shared else features + layer)
        for layer in range(num_layers)
    ]


@pytest.mark.parametrize("frames", [1, 3])
def test_mask_logits_are_products_over_channels(frames: int) -> None:
    layer = random_layers(1, frames=frames)[0]
    expected = torch.einsum("bqc,btchw->bqthw", layer.mask_embed, layer.mask_features)
    torch.testing.assert_close(layer.mask_logits(), expected)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("frames", [1, 2])
def test_chosen_mask_logits_are_rows_of_the_full_maps(shared: bool, frames: int) -> None:
    layers = random_layers(frames=frames, shared=shared)
    assert share_features(layers) == shared
    queries = [torch.tensor([[4], [0], [4]]), torch.tensor([[5, 0], [2, 2], [1, 3]])]
    expected = [
        torch.stack([layer.mask_logits()[image][index] for layer, index in zip(layers, chosen)])
        for image, chosen in enumerate(queries)
    ]
    torch.testing.assert_close(chosen_mask_logits(layers, queries), expected)


def test_chosen_mask_logits_of_no_query_keep_gradients_connected() -> None:
    embed, features = torch.randn(1, 6, 8, requires_grad=True), torch.randn(1, 1, 8, 5, 7, requires_grad=True)
    layers = [QueryPrediction(torch.randn(1, 6, 4), embed, features)]
    (logits,) = chosen_mask_logits(layers, [torch.zeros(1, 0, dtype=torch.long)])
    assert logits.shape == (1, 0, 1, 5, 7)
    logits.sum().backward()
    assert embed.grad is not None
    assert embed.grad.eq(0).all()
    assert features.grad is not None


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 4, 3, 5, 7)])
def test_prediction_from_logits_gives_the_same_masks(shape: tuple[int, ...]) -> None:
    masks = torch.randn(shape)
    prediction = QueryPrediction.from_logits(torch.randn(2, 4, 6), masks)
    expected = masks if masks.ndim == 5 else masks[:, :, None]
    torch.testing.assert_close(prediction.mask_logits(), expected)


@pytest.mark.parametrize(
    ("embed_shape", "maps_shape"),
    [
        ((3, 5, 8), (1, 8, 33)),
        ((5, 8), (1, 8, 33)),
        ((1, 5, 8), (1, 8, 33)),
        ((2, 3, 5, 8), (1, 1, 8, 33)),
        ((3, 5, 8), (8, 33)),
        ((5, 8), (1, 1, 8, 33)),
        ((2, 1, 5, 8), (2, 3, 8, 33)),
        ((0, 5, 8), (1, 8, 33)),
        ((2, 0, 8), (1, 8, 33)),
    ],
)
@torch.no_grad()
def test_maps_are_multiplied_with_leading_dimensions_spread(
    embed_shape: tuple[int, ...], maps_shape: tuple[int, ...]
) -> None:
    embed, maps = torch.randn(embed_shape), torch.randn(maps_shape)
    torch.testing.assert_close(multiply_maps(embed, maps), embed @ maps)
