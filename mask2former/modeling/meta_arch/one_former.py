"""OneFormer: one model, trained once, that does the task it is told (Jain et al., CVPR 2023).

Backbone, pixel decoder, masked decoder and losses are Mask2Former's. A sentence that names the task becomes the token
that queries are made of; in training the queries of an image are contrasted with texts of the objects it holds.

Letters: B batch, Q queries, N texts of an image, S tokens, C channels, H W size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mask2former.config import as_mask_former
from mask2former.distributed import get_world_size
from mask2former.errors import ConfigError, DatasetError, InputError
from mask2former.modeling.contrastive import ContrastiveSetCriterion
from mask2former.modeling.layers import MLP
from mask2former.modeling.meta_arch.inputs import count_frames
from mask2former.modeling.meta_arch.mask_former import MaskFormer
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead
from mask2former.modeling.postprocess import InferenceOptions
from mask2former.modeling.prediction import QueryPrediction
from mask2former.modeling.registry import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from mask2former.modeling.text_encoder import TextEncoder, text_queries
from mask2former.modeling.transformer_decoder import ContrastiveMultiScaleMaskedTransformerDecoder
from mask2former.structures.tasks import parse_task, parse_tasks, task_token_ids

_logger = logging.getLogger(__name__)
TASK_MLP_LAYERS = 2
_PLAIN_CRITERION = "SetCriterion"


class TaskMLP(MLP):
    """Maps token ids (B, S), as numbers, to task embeddings (B, C), in float32 at least.

    Ids reach 49,407: half precision would round them to other tokens.
    """

    keeps_float32 = True

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            # Parity: ids are numbers, neither embedded nor scaled (test_head_outputs_match).
            return super().forward(ids.to(torch.promote_types(torch.float32, next(self.parameters()).dtype)))


@SEM_SEG_HEADS_REGISTRY.register()
class OneFormerHead(MaskFormerHead):
    """The head of two decoders, whose second is told the task."""

    predictor: ContrastiveMultiScaleMaskedTransformerDecoder

    def decode(self, inputs: Any, mask_features: Tensor, *, task: Tensor) -> tuple[list[QueryPrediction], Tensor]:
        """Return predictions, final last, and initial queries (B, Q, C), of what ``encode`` gives and tasks (B, C)."""
        queries = self.predictor.initial_queries(task, mask_features)
        return self.predictor.decode(queries, inputs, mask_features), queries


@META_ARCH_REGISTRY.register()
class OneFormer(MaskFormer):
    """The published meta-architecture: a sample's ``task``, or else the model's own, says what is inferred."""

    sem_seg_head: OneFormerHead  # type: ignore[assignment]  # its decoder is called with queries
    criterion: ContrastiveSetCriterion
    compiled_steps: ClassVar[Sequence[str]] = ("encode_pixels", "decode_task")

    def __init__(
        self,
        *args: Any,
        hidden_dim: int,
        task: str = "panoptic",
        task_length: int = 77,
        text_encoder: TextEncoder | None = None,
        projector_layers: int = 2,
        num_contexts: int = 16,
        **options: Any,
    ) -> None:
        """Take the arguments of ``MaskFormer``, and those of task and texts.

        ``task``: that of samples which name none; ``all`` gives the result of each task, of one pass of the backbone.
        ``task_length``: tokens of a task's sentence, padding included.
        ``text_encoder``: of training; None builds a model for inference alone.
        """
        super().__init__(*args, **options)
        parse_tasks(task, source="MODEL.TEST.TASK")
        self.task, self.task_length = task, task_length
        self.warned_of_one_image = False
        self.task_mlp = TaskMLP(task_length, hidden_dim, hidden_dim, TASK_MLP_LAYERS)
        self.text_encoder = text_encoder
        self.num_contexts = num_contexts
        if text_encoder is not None:
            self.text_projector = MLP(hidden_dim, hidden_dim, hidden_dim, projector_layers)
            self.prompt_ctx = nn.Embedding(num_contexts, hidden_dim) if num_contexts else None

    @property
    def num_texts(self) -> int:
        """The number of texts of an image: queries less learned contexts."""
        return self.sem_seg_head.predictor.num_queries - self.num_contexts

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Return the parts of Mask2Former, with OneFormer's options, and those of task and texts."""
        shared = as_mask_former(cfg)
        if shared.MODEL.MASK_FORMER.CRITERION == _PLAIN_CRITERION:
            shared.MODEL.MASK_FORMER.CRITERION = ContrastiveSetCriterion.__name__
        options, text = cfg.MODEL.ONE_FORMER, cfg.MODEL.TEXT_ENCODER
        if options.NUM_OBJECT_QUERIES <= text.N_CTX:
            raise ConfigError(
                f"MODEL.ONE_FORMER.NUM_OBJECT_QUERIES: expected more than the {text.N_CTX} contexts of "
                f"MODEL.TEXT_ENCODER.N_CTX, found {options.NUM_OBJECT_QUERIES}"
            )
        if text.WIDTH != options.HIDDEN_DIM:
            raise ConfigError(
                f"MODEL.TEXT_ENCODER.WIDTH: expected MODEL.ONE_FORMER.HIDDEN_DIM {options.HIDDEN_DIM}, "
                f"found {text.WIDTH}"
            )
        encoder = TextEncoder(
            context_length=text.CONTEXT_LENGTH,
            width=text.WIDTH,
            num_layers=text.NUM_LAYERS,
            vocab_size=text.VOCAB_SIZE,
        )
        return {
            **super().from_config(shared),
            "hidden_dim": options.HIDDEN_DIM,
            "task": cfg.MODEL.TEST.TASK,
            "task_length": cfg.INPUT.TASK_SEQ_LEN,
            "text_encoder": encoder if cfg.MODEL.IS_TRAIN else None,
            "projector_layers": text.PROJ_NUM_LAYERS,
            "num_contexts": text.N_CTX,
        }

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return weighted scalar losses in training, one dictionary of results per sample otherwise.

        Samples are those of ``MaskFormer``, images alone. ``task`` is a task's name or sentence, in inference also
        ``all``. In training ``text`` holds the token ids (N, S) of the texts that describe the objects.

        Raises:
            InputError: samples are malformed, name no task in training, or hold clips.
            NonFiniteError: matching met a value that is infinite or not a number.
        """
        if count_frames(batch) is not None:
            raise InputError("OneFormer takes images, found clips: predict their frames one by one")
        images, geometries = self.pad(batch)
        if self.training:
            return self._train(batch, images, size=geometries[0].padded)
        tasks = [parse_tasks(sample.get("task", self.task), source=_name(sample, i)) for i, sample in enumerate(batch)]
        with self.inference_precision():
            inputs, mask_features = self.encode_pixels(images)
        results: list[dict[str, Any]] = [{} for _ in batch]
        for name in dict.fromkeys(name for names in tasks for name in names):
            asked = [index for index, names in enumerate(tasks) if name in names and self.options_of(name, names)]
            if not asked:
                continue
            with self.inference_precision():
                chosen = [level if len(asked) == len(batch) else level[asked] for level in (*inputs, mask_features)]
                (*_, prediction), _ = self.decode_task(chosen[:-1], chosen[-1], self.task_ids([name] * len(asked)))
            for row, index in enumerate(asked):
                one = QueryPrediction(*(values[row : row + 1] for values in prediction))
                options = self.options_of(name, tasks[index])
                (result,) = self.results(one, [geometries[index]], options=options)
                results[index].update(result)
        return results

    def options_of(self, name: str, tasks: Sequence[str]) -> InferenceOptions | None:
        """Return options for all results, of the only task, or for its own result, of one among several.

        None if that is switched off.
        """
        options = replace(self.inference, things_only=True)  # as if panoptic results were made, too, in every task
        if len(tasks) == 1:
            return options
        own = {
            "semantic": options.semantic and name == "semantic",
            "panoptic": options.panoptic and name == "panoptic",
            "instance": options.instance and name == "instance",
        }
        if not any(own.values()):
            return None
        # As if the other results were made, too.
        resize_first = options.resize_before_inference or options.panoptic or options.instance
        return replace(options, **own, resize_before_inference=resize_first)

    def encode_pixels(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map images (B, 3, H, W) to the maps that queries attend to, and mask features (B, C, h, w)."""
        return self.sem_seg_head.encode(self.features(images))

    def decode_task(
        self, inputs: Sequence[Tensor], mask_features: Tensor, task_ids: Tensor
    ) -> tuple[list[QueryPrediction], Tensor]:
        """Return predictions, final last, and initial queries (B, Q, C), for task token ids (B, S)."""
        return self.sem_seg_head.decode(list(inputs), mask_features, task=self.task_mlp(task_ids))

    def task_ids(self, names: Sequence[str]) -> Tensor:
        """Return the token ids (B, S) int64 of the sentences of tasks."""
        ids = [task_token_ids(name, length=self.task_length) for name in names]
        return torch.tensor(ids, device=self.device)

    def text_queries(self, texts: Sequence[Tensor]) -> Tensor:
        """Return text queries (B, Q, C) of the token ids (N, S) of each image's texts.

        Raises:
            DatasetError: the ids do not fit the model.
            InputError: the model was built for inference alone.
        """
        if self.text_encoder is None:
            raise InputError("training OneFormer needs its text branch: MODEL.IS_TRAIN True builds it")
        return text_queries(
            texts,
            encoder=self.text_encoder,
            projector=self.text_projector,
            contexts=self.prompt_ctx,
            num_texts=self.num_texts,
        )

    def _train(self, batch: Sequence[dict[str, Any]], images: Tensor, *, size: tuple[int, int]) -> dict[str, Tensor]:
        for key in ("task", "text"):
            missing = [_name(sample, index) for index, sample in enumerate(batch) if key not in sample]
            if missing:
                raise DatasetError(f"{', '.join(missing)}: training OneFormer needs {key!r} (mapper oneformer_unified)")
        if len(batch) == 1 and get_world_size() == 1 and not self.warned_of_one_image:
            self.warned_of_one_image = True
            _logger.warning(
                "OneFormer trains on one image at a time: its contrastive loss, which tells images of a batch apart, "
                "is 0; expected SOLVER.IMS_PER_BATCH above 1 (said once)"
            )
        names = [parse_task(sample["task"], source=_name(sample, index)) for index, sample in enumerate(batch)]
        predictions, queries = self.decode_task(*self.encode_pixels(images), self.task_ids(names))
        losses = self.losses(predictions, batch, size=size)
        contrast = self.criterion.contrastive_loss(queries, self.text_queries([sample["text"] for sample in batch]))
        return {**losses, **self.criterion.weight({"loss_contrastive": contrast})}


def _name(sample: dict[str, Any], index: int) -> str:
    return str(sample.get("file_name", f"sample {index} of the batch"))
