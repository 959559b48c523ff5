"""Mask2Former as ``PreTrainedModel``s of transformers over the modules of this package.

Its transformer decoder shows hidden states and attention weights, as outputs of transformers do.

Letters: B batch, Q queries, N targets of an image, K classes, S tokens, C channels, M heads, D channels of a head, H W
size of the padded images, h w of masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mask2former import modeling_mask2former as theirs

from mask2former.errors import InputError
from mask2former.integrations.transformers.configuration import Mask2FormerConfig, config_to_cfg
from mask2former.integrations.transformers.loading import Naming, PretrainedFolder
from mask2former.modeling import (
    MaskFormerHead,
    MSDeformAttnPixelDecoder,
    MultiScaleMaskedTransformerDecoder,
    SetCriterion,
    accelerate,
)
from mask2former.modeling.backbone import build_backbone
from mask2former.modeling.backbone.swin import SwinStage
from mask2former.modeling.backbone.window_attention import WindowAttention, relative_position_index, shift_masks
from mask2former.modeling.layers import MultiheadAttention, checkpoint_activations
from mask2former.modeling.meta_arch.assembly import build_criterion
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import build_from_config
from mask2former.structures import ShapeSpec


class DecoderRecord(NamedTuple):
    """Predictions, queries before each layer and after the last (Q, B, C), self-attention of each layer (B, M, Q, Q).

    The predictions' class logits are the normed queries (B, Q, C): classes are left to the head.
    """

    predictions: list[QueryPrediction]
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None


class RecordingAttention(MultiheadAttention):
    """Attention that is written out, and keeps its weights (B, M, Q, S) in ``weights``, while it is asked to."""

    is_recording = False
    weights: Tensor | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attend_mask: Tensor | None = None) -> Tensor:
        """As fused attention computes it; only without a mask while it is recording."""
        if not self.is_recording:
            return super().forward(query, key, value, attend_mask)
        assert attend_mask is None, "only self-attention is recorded"
        projections = zip(self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), (query, key, value), strict=True)
        queries, keys, values = (self._split_heads(F.linear(x, weight, bias)) for weight, bias, x in projections)
        self.weights = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1)  # (B, M, Q, S)
        return self.out_proj((self.weights @ values).transpose(1, 2).flatten(2))


class RecordsStates:
    """A masked decoder that also returns its hidden states and attention weights; mixed into its class."""

    use_checkpoint: bool
    transformer_self_attention_layers: Any
    transformer_ffn_layers: Any
    _states: list[Tensor] | None = None

    def record_attention(self) -> None:
        """Replace self-attention by one that can keep its weights; before weights are loaded."""
        for layer in self.transformer_self_attention_layers:
            layer.self_attn = RecordingAttention(layer.self_attn.embed_dim, layer.self_attn.num_heads)

    def record(self, decode: Callable[[], list[QueryPrediction]], *, with_attentions: bool) -> DecoderRecord:
        """Return what ``decode`` predicts of images, and the states on the way.

        Where weights are asked for, fused attention and checkpointing are given up.
        """
        attentions = [layer.self_attn for layer in self.transformer_self_attention_layers]
        use_checkpoint = self.use_checkpoint
        self.use_checkpoint = use_checkpoint and not with_attentions
        self._states = []
        for attention in attentions:
            attention.is_recording = with_attentions
        try:
            predictions = decode()
            weights = tuple(attention.weights for attention in attentions) if with_attentions else None
            return DecoderRecord(predictions, tuple(self._states), weights)
        finally:
            self.use_checkpoint, self._states = use_checkpoint, None
            for attention in attentions:
                attention.is_recording, attention.weights = False, None

    def _predict(self, queries: Tensor, mask_features: Tensor) -> QueryPrediction:
        if self._states is not None and len(self._states) == len(self.transformer_ffn_layers):  # the last layer's
            self._states.append(queries.transpose(0, 1))
        return super()._predict(queries, mask_features)  # type: ignore[misc]

    def _decode(self, queries: Tensor, index: int, *args: Tensor) -> Tensor:
        state = queries.transpose(0, 1)  # (Q, B, C), through which gradients pass on their way back
        if self._states is not None:  # it is None while the layer is computed again for its gradients
            self._states.append(state)
        return super()._decode(state.transpose(0, 1), index, *args)  # type: ignore[misc]


class RecordingDecoder(RecordsStates, MultiScaleMaskedTransformerDecoder):
    """The masked decoder without classes, which also returns its hidden states and attention weights."""

    def __init__(self, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels, **options)
        self.class_embed = nn.Identity()  # type: ignore[assignment]
        self.record_attention()


_SWIN_BACKBONES = ("swin", "maskformer-swin")


@dataclass
class Mask2FormerModelOutput(theirs.Mask2FormerModelOutput):
    """Their output; shapes as there."""


@dataclass
class Mask2FormerForUniversalSegmentationOutput(theirs.Mask2FormerForUniversalSegmentationOutput):
    """Their output, and where a ``pixel_mask`` was given the sizes (B, 2), height and width, that cropping needs."""

    image_sizes: Tensor | None = None
    padded_sizes: Tensor | None = None


class ModelRecord(NamedTuple):
    """What one pass computes: maps of the backbone, mask features, maps for the decoder, and the decoder's record."""

    features: tuple[Tensor, ...]
    mask_features: Tensor
    maps: tuple[Tensor, ...]
    decoder: DecoderRecord


class PreTrained(PretrainedFolder, PreTrainedModel):
    """What all models share: files, initial values, gradient checkpointing."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Parameters come initialised, as those of the published model; the class predictor is drawn as theirs.

        What follows from sizes is written again: a model that was built on the device "meta" has lost it.
        """
        if isinstance(module, WindowAttention):
            window_size = (math.isqrt(len(module.relative_position_bias_table)) + 1) // 2
            module.relative_position_index.copy_(relative_position_index(window_size))
        elif isinstance(module, SwinStage):
            module.shift_masks.copy_(shift_masks(math.isqrt(module.shift_masks.shape[-1])))
        elif isinstance(module, SetCriterion):
            module.empty_weight.fill_(1)[-1] = self.config.no_object_weight
        elif module is getattr(self, "class_predictor", None):
            nn.init.normal_(module.weight, std=self.config.init_std)
            nn.init.zeros_(module.bias)

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        """Swin's blocks and the layers of both decoders are computed again; never by PyTorch's older, reentrant way."""
        self.gradient_checkpointing = enable
        checkpoint_activations(self, enabled=enable)

    def _wanted(self, **flags: bool | None) -> list[bool]:
        """Return each flag as given, by the config where it is None."""
        return [bool(getattr(self.config, name) if flag is None else flag) for name, flag in flags.items()]


class Mask2FormerPreTrainedModel(PreTrained):
    """What the models with and without heads share."""

    config: Mask2FormerConfig
    config_class = Mask2FormerConfig
    naming = Naming("Mask2Former", "sem_seg_head.predictor.query_feat.", classes_apart=True)


class Mask2FormerModel(Mask2FormerPreTrainedModel):
    """Backbone, pixel decoder and transformer decoder, without classes."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        cfg, backbone = config_to_cfg(config), config.backbone_config
        self.backbone = build_backbone(cfg, ShapeSpec(channels=backbone.num_channels))
        shapes = self.backbone.output_shape()
        self.sem_seg_head = MaskFormerHead(
            config.num_labels,
            pixel_decoder=build_pixel_decoder(cfg, config, shapes),
            predictor=build_from_config(RecordingDecoder, cfg, config.feature_size),
        )
        add_final_norm(self, backbone.model_type, shapes)
        if config.init_xavier_std != 1:
            _draw_decoder(self.sem_seg_head.predictor, gain=config.init_xavier_std)
        accelerate(self)
        self.post_init()

    def record(self, pixel_values: Tensor, *, with_attentions: bool) -> ModelRecord:
        """Run normalised images (B, 3, H, W) through the model and return the record; no mask is computed yet."""
        features = self.backbone(pixel_values)
        mask_features, _, maps = self.sem_seg_head.pixel_decoder.forward_features(features)
        predictor = self.sem_seg_head.predictor
        assert isinstance(predictor, RecordingDecoder)
        decoder = predictor.record(lambda: predictor(maps, mask_features), with_attentions=with_attentions)
        return ModelRecord(tuple(features.values()), mask_features, tuple(maps), decoder)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Mask2FormerModelOutput | tuple[Any, ...]:
        """Return hidden states and the masks (B, Q, h, w) of all prediction layers for images (B, 3, H, W)."""
        with_states, with_attentions, as_dict = self._wanted(
            output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=return_dict
        )
        record = self.record(pixel_values, with_attentions=with_attentions)
        predictions = record.decoder.predictions
        output = Mask2FormerModelOutput(
            **states_of(record, with_states=with_states),
            transformer_decoder_intermediate_states=(
                tuple(prediction.class_logits.transpose(0, 1) for prediction in predictions) if with_states else None
            ),
            masks_queries_logits=tuple(prediction.mask_logits().squeeze(2) for prediction in predictions),
        )
        return output if as_dict else output.to_tuple()


class Mask2FormerForUniversalSegmentation(Mask2FormerPreTrainedModel):
    """The model with a class for each query, and with losses."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.criterion = build_criterion(config_to_cfg(config))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Any = None,
        class_labels: Any = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_auxiliary_logits: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Mask2FormerForUniversalSegmentationOutput | tuple[Any, ...]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of images (B, 3, H, W), and with labels the loss.

        ``mask_labels`` are B tensors (N, H, W) of zeros and ones, ``class_labels`` B tensors (N,) of classes 0..K-1;
        ``pixel_mask`` (B, H, W) is 1 on images and 0 on padding.

        Raises:
            InputError: one kind of labels without the other, or labels that do not fit the images or classes.
        """
        with_states, with_auxiliary, with_attentions, as_dict = self._wanted(
            output_hidden_states=output_hidden_states,
            output_auxiliary_logits=output_auxiliary_logits,
            output_attentions=output_attentions,
            return_dict=return_dict,
        )
        record = self.model.record(pixel_values, with_attentions=with_attentions)
        predictions = [
            prediction._replace(class_logits=self.class_predictor(prediction.class_logits))
            for prediction in record.decoder.predictions
        ]
        *auxiliary, final = predictions
        output = Mask2FormerForUniversalSegmentationOutput(
            loss=self._loss(predictions, mask_labels, class_labels),
            **logits_of(final),
            auxiliary_logits=[logits_of(prediction) for prediction in auxiliary] if with_auxiliary else None,
            **states_of(record, with_states=with_states),
            **({} if pixel_mask is None else sizes_of(pixel_mask)),
        )
        return output if as_dict else output.to_tuple()

    def _loss(self, predictions: list[QueryPrediction], mask_labels: Any, class_labels: Any) -> Tensor | None:
        """Return the weighted sum over layers; of the last alone without ``use_auxiliary_loss``.

        None without labels.
        """
        if mask_labels is None and class_labels is None:
            return None
        targets = targets_of(mask_labels, class_labels, predictions[0].class_logits)
        chosen = predictions if self.config.use_auxiliary_loss else predictions[-1:]
        return torch.stack(list(self.criterion.weight(self.criterion(chosen, targets)).values())).sum()


def build_pixel_decoder(cfg: Any, config: Any, shapes: Mapping[str, ShapeSpec]) -> MSDeformAttnPixelDecoder:
    """Return the pixel decoder of a config of ours, whose feed-forward networks have the width that theirs says."""
    options = MSDeformAttnPixelDecoder.from_config(cfg, dict(shapes))
    options["transformer_dim_feedforward"] = config.encoder_feedforward_dim
    return MSDeformAttnPixelDecoder(**options)


def add_final_norm(model: nn.Module, backbone: str, shapes: Mapping[str, ShapeSpec]) -> None:
    """Give a model with their Swin the norm it ends in, which nothing reads: saving gives back all that was loaded."""
    if backbone in _SWIN_BACKBONES:
        model.final_norm = nn.LayerNorm(shapes["res5"].channels).requires_grad_(False)


@torch.no_grad()
def _draw_decoder(decoder: Any, *, gain: float) -> None:
    """Draw the matrices of the decoder's layers, and its projections of maps, from a range ``gain`` times as wide."""
    layers = (
        *decoder.transformer_self_attention_layers,
        *decoder.transformer_cross_attention_layers,
        *decoder.transformer_ffn_layers,
    )
    for parameter in (parameter for layer in layers for parameter in layer.parameters() if parameter.ndim > 1):
        nn.init.xavier_uniform_(parameter, gain=gain)
    for projection in decoder.input_proj:
        if isinstance(projection, nn.Conv2d):
            nn.init.xavier_uniform_(projection.weight, gain=gain)


def states_of(record: ModelRecord, *, with_states: bool) -> dict[str, Any]:
    """Return the fields that both outputs have in common, by name."""
    states = record.decoder.hidden_states
    return {
        "encoder_last_hidden_state": record.features[-1],
        "pixel_decoder_last_hidden_state": record.mask_features,
        "transformer_decoder_last_hidden_state": states[-1].transpose(0, 1),
        "encoder_hidden_states": record.features if with_states else None,
        "pixel_decoder_hidden_states": record.maps if with_states else None,
        "transformer_decoder_hidden_states": states if with_states else None,
        "attentions": record.decoder.attentions,
    }


def logits_of(prediction: QueryPrediction) -> dict[str, Tensor]:
    """Return the class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of a prediction, by their field."""
    return {
        "class_queries_logits": prediction.class_logits,
        "masks_queries_logits": prediction.mask_logits().squeeze(2),  # (B, Q, 1, h, w)
    }


def sizes_of(pixel_mask: Tensor) -> dict[str, Tensor]:
    """Return sizes (B, 2) of the images in the corner of their padded ones, and of these."""
    is_image = pixel_mask.bool()
    image_sizes = torch.stack((is_image.any(2).sum(1), is_image.any(1).sum(1)), dim=1)
    padded = torch.tensor(pixel_mask.shape[1:], device=pixel_mask.device)
    return {"image_sizes": image_sizes, "padded_sizes": padded.expand_as(image_sizes)}


def targets_of(mask_labels: Any, class_labels: Any, class_logits: Tensor) -> list[dict[str, Tensor]]:
    """Return what the criterion takes for logits (B, Q, K + 1): ``labels`` (N,), ``masks`` (N, H, W) bool of one size.

    Raises:
        InputError: one kind of labels without the other, or labels that do not fit the images or classes.
    """
    num_images, num_classes = len(class_logits), class_logits.shape[-1] - 1
    for name, given in (("mask_labels", mask_labels), ("class_labels", class_labels)):
        if given is None:
            raise InputError(f"{name}: missing; a loss needs mask_labels and class_labels")
        if len(given) != num_images:
            raise InputError(f"{name}: expected one tensor for each of {num_images} images, found {len(given)}")
    for index, (masks, classes) in enumerate(zip(mask_labels, class_labels)):
        if masks.ndim != 3 or classes.ndim != 1 or len(masks) != len(classes):
            found = f"{tuple(masks.shape)} and {tuple(classes.shape)}"
            raise InputError(f"labels of image {index}: expected masks (N, H, W) and classes (N,), found {found}")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            found = f"{int(classes.min())}..{int(classes.max())}"
            raise InputError(f"class_labels of image {index}: expected 0..{num_classes - 1}, found {found}")
    height, width = (max(masks.shape[axis] for masks in mask_labels) for axis in (1, 2))
    return [
        # 255 is padding: their processor fills masks with its ignore_index.
        {
            "labels": classes.long().to(class_logits.device),
            "masks": _pad((masks > 0.5) & (masks != 255), height, width).to(class_logits.device),
        }
        for masks, classes in zip(mask_labels, class_labels)
    ]


def _pad(masks: Tensor, height: int, width: int) -> Tensor:
    return F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
