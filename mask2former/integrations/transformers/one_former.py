"""OneFormer as ``PreTrainedModel``s of transformers over the modules of this package.

Theirs departs from the published model in training: its text encoder looks ahead, the texts of an image count objects
of those before it, and the contrastive loss stays within a process. Ours follows the published one.

Letters: B batch, Q queries, N texts, K classes, S tokens, C channels, H W size of the padded images, h w of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.oneformer import modeling_oneformer as theirs

from mask2former.config import as_mask_former
from mask2former.errors import InputError
from mask2former.integrations.transformers.configuration import OneFormerConfig, config_to_cfg
from mask2former.integrations.transformers.loading import Naming
from mask2former.integrations.transformers.modeling import (
    DecoderRecord,
    PreTrained,
    RecordsStates,
    add_final_norm,
    build_pixel_decoder,
    logits_of,
    sizes_of,
    targets_of,
)
from mask2former.modeling import ContrastiveMultiScaleMaskedTransformerDecoder, OneFormerHead, accelerate
from mask2former.modeling.backbone import build_backbone
from mask2former.modeling.contrastive import ContrastiveSetCriterion
from mask2former.modeling.layers import MLP
from mask2former.modeling.meta_arch.assembly import build_criterion
from mask2former.modeling.meta_arch.one_former import TASK_MLP_LAYERS, TaskMLP
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import build_from_config
from mask2former.modeling.text_encoder import TextEncoder, text_queries
from mask2former.structures import ShapeSpec


class RecordingTaskDecoder(RecordsStates, ContrastiveMultiScaleMaskedTransformerDecoder):
    """The decoder of OneFormer, which also returns its hidden states and attention weights."""

    def __init__(self, in_channels: int, **options: Any) -> None:
        super().__init__(in_channels, **options)
        self.record_attention()


@dataclass
class OneFormerModelOutput(theirs.OneFormerModelOutput):
    """Their output; shapes as there. ``attentions`` are those of self-attention, one tensor for each layer."""


@dataclass
class OneFormerForUniversalSegmentationOutput(theirs.OneFormerForUniversalSegmentationOutput):
    """Their output, and where a ``pixel_mask`` was given the sizes (B, 2), height and width, that cropping needs."""

    image_sizes: Tensor | None = None
    padded_sizes: Tensor | None = None


@dataclass(frozen=True)
class TaskRecord:
    """What one pass computes: maps of the backbone and for the decoder, its record, and initial queries (B, Q, C)."""

    features: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    mask_features: Tensor
    task: Tensor  # (B, C)
    queries: Tensor
    decoder: DecoderRecord


class OneFormerPreTrainedModel(PreTrained):
    """What the models with and without losses share."""

    config: OneFormerConfig
    config_class = OneFormerConfig
    naming = Naming("OneFormer", "task_mlp.", classes_apart=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContrastiveSetCriterion):
            module.logit_scale.fill_(1 / self.config.contrastive_temperature).log_()


class OneFormerModel(OneFormerPreTrainedModel):
    """Backbone, pixel decoder, decoder and task token; with ``is_training`` also the text branch."""

    def __init__(self, config: OneFormerConfig) -> None:
        super().__init__(config)
        cfg, backbone, width = config_to_cfg(config), config.backbone_config, config.hidden_dim
        shared = as_mask_former(cfg)
        self.backbone = build_backbone(cfg, ShapeSpec(channels=backbone.num_channels))
        shapes = self.backbone.output_shape()
        self.sem_seg_head = OneFormerHead(
            config.num_labels,
            pixel_decoder=build_pixel_decoder(shared, config, shapes),
            predictor=build_from_config(RecordingTaskDecoder, shared, config.conv_dim),
        )
        self.task_mlp = TaskMLP(config.task_seq_len, width, width, TASK_MLP_LAYERS)
        self.num_texts = config.num_queries - config.text_encoder_n_ctx
        self.text_encoder: TextEncoder | None = None
        self.prompt_ctx: nn.Embedding | None = None
        if config.is_training:
            self.text_encoder = TextEncoder(
                context_length=config.text_encoder_context_length,
                width=config.text_encoder_width,
                num_layers=config.text_encoder_num_layers,
                vocab_size=config.text_encoder_vocab_size,
            )
            self.text_projector = MLP(config.text_encoder_width, width, width, config.text_encoder_proj_layers)
            self.prompt_ctx = nn.Embedding(config.text_encoder_n_ctx, width) if config.text_encoder_n_ctx else None
        add_final_norm(self, backbone.model_type, shapes)
        accelerate(self)
        self.post_init()

    def record(self, pixel_values: Tensor, task_inputs: Tensor, *, with_attentions: bool) -> TaskRecord:
        """Run normalised images (B, 3, H, W) and token ids of tasks (B, S) through the model; no mask is computed yet.

        Raises:
            InputError: not one row of ``task_inputs`` for each image, or rows of another length.
        """
        expected = (len(pixel_values), self.config.task_seq_len)
        if tuple(task_inputs.shape) != expected:
            raise InputError(f"task_inputs: expected token ids of shape {expected}, found {tuple(task_inputs.shape)}")
        features = self.backbone(pixel_values)
        maps, mask_features = self.sem_seg_head.encode(features)
        task = self.task_mlp(task_inputs)
        predictor = self.sem_seg_head.predictor
        assert isinstance(predictor, RecordingTaskDecoder)
        queries = predictor.initial_queries(task, mask_features)
        decoder = predictor.record(
            lambda: predictor.decode(queries, maps, mask_features), with_attentions=with_attentions
        )
        return TaskRecord(tuple(features.values()), tuple(maps), mask_features, task, queries, decoder)

    def describe(self, text_inputs: Sequence[Tensor]) -> Tensor:
        """Return text queries (B, Q, C) of the token ids (N, S) of each image's texts.

        Raises:
            DatasetError: the ids do not fit the model.
            InputError: the config has no text branch.
        """
        if self.text_encoder is None:
            raise InputError("text_inputs: the text branch is built by a config with is_training=True")
        return text_queries(
            text_inputs,
            encoder=self.text_encoder,
            projector=self.text_projector,
            contexts=self.prompt_ctx,
            num_texts=self.num_texts,
        )

    def forward(
        self,
        pixel_values: Tensor,
        task_inputs: Tensor,
        text_inputs: Any = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> OneFormerModelOutput | tuple[Any, ...]:
        """Return the predictions of all layers for images (B, 3, H, W) and tasks (B, S)."""
        with_states, with_attentions, as_dict = self._wanted(
            output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=return_dict
        )
        record = self.record(pixel_values, task_inputs, with_attentions=with_attentions)
        texts = None if text_inputs is None else self.describe(text_inputs)
        output = OneFormerModelOutput(**fields_of(record, texts=texts, with_states=with_states, with_auxiliary=True))
        return output if as_dict else output.to_tuple()


class OneFormerForUniversalSegmentation(OneFormerPreTrainedModel):
    """The model with losses."""

    criterion: ContrastiveSetCriterion

    def __init__(self, config: OneFormerConfig) -> None:
        super().__init__(config)
        self.model = OneFormerModel(config)
        shared = as_mask_former(config_to_cfg(config))
        shared.MODEL.MASK_FORMER.CRITERION = ContrastiveSetCriterion.__name__
        criterion = build_criterion(shared)
        assert isinstance(criterion, ContrastiveSetCriterion)
        self.criterion = criterion
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        task_inputs: Tensor,
        text_inputs: Any = None,
        mask_labels: Any = None,
        class_labels: Any = None,
        pixel_mask: Tensor | None = None,
        output_auxiliary_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> OneFormerForUniversalSegmentationOutput | tuple[Any, ...]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w) of images (B, 3, H, W), and with labels the loss.

        ``task_inputs`` (B, S) are token ids of the tasks, ``text_inputs`` (B, N, S) those of the texts, which a loss
        needs where the config has ``is_training``. ``mask_labels`` are B tensors (N, H, W) of zeros and ones,
        ``class_labels`` B tensors (N,) of classes 0..K-1; ``pixel_mask`` (B, H, W) is 1 on images and 0 on padding.

        Raises:
            InputError: tasks, texts or labels are missing or do not fit.
        """
        with_states, with_auxiliary, with_attentions, as_dict = self._wanted(
            output_hidden_states=output_hidden_states,
            output_auxiliary_logits=output_auxiliary_logits,
            output_attentions=output_attentions,
            return_dict=return_dict,
        )
        record = self.model.record(pixel_values, task_inputs, with_attentions=with_attentions)
        texts = None if text_inputs is None else self.model.describe(text_inputs)
        fields = fields_of(record, texts=texts, with_states=with_states, with_auxiliary=with_auxiliary)
        output = OneFormerForUniversalSegmentationOutput(
            loss=self._loss(record, texts, mask_labels, class_labels),
            class_queries_logits=fields["transformer_decoder_class_predictions"],
            masks_queries_logits=fields["transformer_decoder_mask_predictions"],
            auxiliary_predictions=fields["transformer_decoder_auxiliary_predictions"],
            **fields,
            **({} if pixel_mask is None else sizes_of(pixel_mask)),
        )
        return output if as_dict else output.to_tuple()

    def _loss(self, record: TaskRecord, texts: Tensor | None, mask_labels: Any, class_labels: Any) -> Tensor | None:
        """Return the weighted sum over layers; of the last alone without ``use_auxiliary_loss``.

        None without labels.
        """
        if mask_labels is None and class_labels is None:
            return None
        predictions: list[QueryPrediction] = record.decoder.predictions
        targets = targets_of(mask_labels, class_labels, predictions[0].class_logits)
        losses = self.criterion(predictions if self.config.use_auxiliary_loss else predictions[-1:], targets)
        if self.model.text_encoder is not None:
            if texts is None:
                raise InputError("text_inputs: missing; a loss of a model with is_training=True needs them")
            losses["loss_contrastive"] = self.criterion.contrastive_loss(record.queries, texts)
        return torch.stack(list(self.criterion.weight(losses).values())).sum()


def fields_of(record: TaskRecord, *, texts: Tensor | None, with_states: bool, with_auxiliary: bool) -> dict[str, Any]:
    """Return the fields that both outputs have in common, by name."""
    *earlier, final = record.decoder.predictions
    logits = logits_of(final)
    auxiliary = tuple(logits_of(prediction) for prediction in earlier) if with_auxiliary else None
    return {
        "encoder_hidden_states": record.features if with_states else None,
        "pixel_decoder_hidden_states": (record.mask_features, *record.maps) if with_states else None,
        "transformer_decoder_hidden_states": auxiliary if with_states else None,
        "transformer_decoder_object_queries": record.decoder.hidden_states[-1].transpose(0, 1),
        "transformer_decoder_contrastive_queries": record.queries,
        "transformer_decoder_mask_predictions": logits["masks_queries_logits"],
        "transformer_decoder_class_predictions": logits["class_queries_logits"],
        "transformer_decoder_auxiliary_predictions": auxiliary,
        "text_queries": texts,
        "task_token": record.task,
        "attentions": record.decoder.attentions,
    }
