"""Tensor names of the library transformers for Mask2Former and MaskFormer, beside ours."""

from __future__ import annotations

from mask2former.checkpoint.name_rules import Rule

_ENCODER = "model.pixel_level_module.encoder"
_DECODER = "model.pixel_level_module.decoder"
_QUERIES = "model.transformer_module"
_PIXEL_DECODER = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"

# The norm after the last stage of their Swin, which no segmentation head reads.
UNUSED_BY_HEADS = (r"^model\.pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\.",)


def _swin_rules(prefix: str, norms: str) -> tuple[Rule, ...]:
    """Theirs keep query, key and value apart. ``norms`` are those of the features, the first being of stage i = 0."""
    block, ours = f"{prefix}.encoder.layers.{{i}}.blocks.{{j}}", "backbone.layers.{i}.blocks.{j}"
    attention = f"{block}.attention.self"
    return (
        Rule(f"{prefix}.embeddings.patch_embeddings.projection.{{p}}", "backbone.patch_embed.proj.{p}"),
        Rule(f"{prefix}.embeddings.norm.{{p}}", "backbone.patch_embed.norm.{p}"),
        Rule(f"{block}.layernorm_before.{{p}}", f"{ours}.norm1.{{p}}"),
        Rule(f"{block}.layernorm_after.{{p}}", f"{ours}.norm2.{{p}}"),
        Rule(f"{attention}.relative_position_bias_table", f"{ours}.attn.relative_position_bias_table"),
        Rule(tuple(f"{attention}.{part}.{{p}}" for part in ("query", "key", "value")), f"{ours}.attn.qkv.{{p}}"),
        Rule(f"{block}.attention.output.dense.{{p}}", f"{ours}.attn.proj.{{p}}"),
        Rule(f"{block}.intermediate.dense.{{p}}", f"{ours}.mlp.fc1.{{p}}"),
        Rule(f"{block}.output.dense.{{p}}", f"{ours}.mlp.fc2.{{p}}"),
        Rule(
            f"{prefix}.encoder.layers.{{i}}.downsample.reduction.weight",
            "backbone.layers.{i}.downsample.reduction.weight",
        ),
        Rule(f"{prefix}.encoder.layers.{{i}}.downsample.norm.{{p}}", "backbone.layers.{i}.downsample.norm.{p}"),
        Rule(f"{_ENCODER}.hidden_states_norms.{norms}.{{p}}", "backbone.norm{i}.{p}"),
    )


def _resnet_rules() -> tuple[Rule, ...]:
    layer, ours = f"{_ENCODER}.encoder.stages.{{i}}.layers.{{j}}", "backbone.res{i+2}.{j}"
    return (
        Rule(f"{_ENCODER}.embedder.embedder.convolution.weight", "backbone.stem.conv1.weight"),
        Rule(f"{_ENCODER}.embedder.embedder.normalization.{{p}}", "backbone.stem.conv1.norm.{p}"),
        Rule(f"{layer}.shortcut.convolution.weight", f"{ours}.shortcut.weight"),
        Rule(f"{layer}.shortcut.normalization.{{p}}", f"{ours}.shortcut.norm.{{p}}"),
        Rule(f"{layer}.layer.{{k}}.convolution.weight", f"{ours}.conv{{k+1}}.weight"),
        Rule(f"{layer}.layer.{{k}}.normalization.{{p}}", f"{ours}.conv{{k+1}}.norm.{{p}}"),
    )


def _separate_attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return query, key and value projections that ours, as PyTorch's attention, keeps as one."""
    parts = ("q_proj", "k_proj", "v_proj")
    return (
        *(Rule(tuple(f"{theirs}.{part}.{p}" for part in parts), f"{ours}.in_proj_{p}") for p in ("weight", "bias")),
        Rule(f"{theirs}.out_proj.{{p}}", f"{ours}.out_proj.{{p}}"),
    )


def _pixel_decoder_rules() -> tuple[Rule, ...]:
    theirs, ours = f"{_DECODER}.encoder.layers.{{i}}", f"{_PIXEL_DECODER}.transformer.encoder.layers.{{i}}"
    return (
        Rule(f"{_DECODER}.level_embed", f"{_PIXEL_DECODER}.transformer.level_embed"),
        Rule(f"{_DECODER}.input_projections.{{i}}.{{j}}.{{p}}", f"{_PIXEL_DECODER}.input_proj.{{i}}.{{j}}.{{p}}"),
        *(
            Rule(f"{theirs}.self_attn.{part}.{{p}}", f"{ours}.self_attn.{part}.{{p}}")
            for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        ),
        Rule(f"{theirs}.self_attn_layer_norm.{{p}}", f"{ours}.norm1.{{p}}"),
        Rule(f"{theirs}.fc{{k}}.{{p}}", f"{ours}.linear{{k}}.{{p}}"),
        Rule(f"{theirs}.final_layer_norm.{{p}}", f"{ours}.norm2.{{p}}"),
        Rule(f"{_DECODER}.mask_projection.{{p}}", f"{_PIXEL_DECODER}.mask_features.{{p}}"),
        *(
            rule
            for part in ("adapter", "layer")
            for rule in (
                Rule(f"{_DECODER}.{part}_{{i}}.0.weight", f"{_PIXEL_DECODER}.{part}_{{i}}.weight"),
                Rule(f"{_DECODER}.{part}_{{i}}.1.{{p}}", f"{_PIXEL_DECODER}.{part}_{{i}}.norm.{{p}}"),
            )
        ),
    )


def _masked_decoder_rules() -> tuple[Rule, ...]:
    layer = f"{_QUERIES}.decoder.layers.{{i}}"
    own_attention = f"{_PREDICTOR}.transformer_self_attention_layers.{{i}}"
    cross_attention = f"{_PREDICTOR}.transformer_cross_attention_layers.{{i}}"
    feed_forward = f"{_PREDICTOR}.transformer_ffn_layers.{{i}}"
    return (
        *_separate_attention(f"{layer}.self_attn", f"{own_attention}.self_attn"),
        Rule(f"{layer}.self_attn_layer_norm.{{p}}", f"{own_attention}.norm.{{p}}"),
        Rule(f"{layer}.cross_attn.{{p}}", f"{cross_attention}.multihead_attn.{{p}}"),
        Rule(f"{layer}.cross_attn.out_proj.{{p}}", f"{cross_attention}.multihead_attn.out_proj.{{p}}"),
        Rule(f"{layer}.cross_attn_layer_norm.{{p}}", f"{cross_attention}.norm.{{p}}"),
        Rule(f"{layer}.fc{{k}}.{{p}}", f"{feed_forward}.linear{{k}}.{{p}}"),
        Rule(f"{layer}.final_layer_norm.{{p}}", f"{feed_forward}.norm.{{p}}"),
        Rule(f"{_QUERIES}.decoder.layernorm.{{p}}", f"{_PREDICTOR}.decoder_norm.{{p}}"),
        Rule(f"{_QUERIES}.queries_features.weight", f"{_PREDICTOR}.query_feat.weight"),
        Rule(f"{_QUERIES}.queries_embedder.weight", f"{_PREDICTOR}.query_embed.weight"),
        Rule(f"{_QUERIES}.level_embed.weight", f"{_PREDICTOR}.level_embed.weight"),
        Rule(f"{_QUERIES}.input_projections.{{i}}.{{p}}", f"{_PREDICTOR}.input_proj.{{i}}.{{p}}"),
        Rule(
            f"{_QUERIES}.decoder.mask_predictor.mask_embedder.{{k}}.0.{{p}}",
            f"{_PREDICTOR}.mask_embed.layers.{{k}}.{{p}}",
        ),
        Rule("class_predictor.{p}", f"{_PREDICTOR}.class_embed.{{p}}"),
        Rule("criterion.empty_weight", "criterion.empty_weight"),
    )


def _fpn_rules() -> tuple[Rule, ...]:
    """Theirs count from the coarse map, ours from the fine one."""
    return (
        Rule(f"{_DECODER}.fpn.stem.0.weight", f"{_PIXEL_DECODER}.layer_4.weight"),
        Rule(f"{_DECODER}.fpn.stem.1.{{p}}", f"{_PIXEL_DECODER}.layer_4.norm.{{p}}"),
        *(
            rule
            for theirs, ours in (("proj", "adapter"), ("block", "layer"))
            for rule in (
                Rule(f"{_DECODER}.fpn.layers.{{i}}.{theirs}.0.weight", f"{_PIXEL_DECODER}.{ours}_{{3-i}}.weight"),
                Rule(f"{_DECODER}.fpn.layers.{{i}}.{theirs}.1.{{p}}", f"{_PIXEL_DECODER}.{ours}_{{3-i}}.norm.{{p}}"),
            )
        ),
        Rule(f"{_DECODER}.mask_projection.{{p}}", f"{_PIXEL_DECODER}.mask_features.{{p}}"),
    )


def _standard_decoder_rules() -> tuple[Rule, ...]:
    theirs, ours = f"{_QUERIES}.decoder.layers.{{i}}", f"{_PREDICTOR}.transformer.decoder.layers.{{i}}"
    return (
        *_separate_attention(f"{theirs}.self_attn", f"{ours}.self_attn"),
        *_separate_attention(f"{theirs}.encoder_attn", f"{ours}.multihead_attn"),
        Rule(f"{theirs}.self_attn_layer_norm.{{p}}", f"{ours}.norm1.{{p}}"),
        Rule(f"{theirs}.encoder_attn_layer_norm.{{p}}", f"{ours}.norm2.{{p}}"),
        Rule(f"{theirs}.final_layer_norm.{{p}}", f"{ours}.norm3.{{p}}"),
        Rule(f"{theirs}.fc{{k}}.{{p}}", f"{ours}.linear{{k}}.{{p}}"),
        Rule(f"{_QUERIES}.decoder.layernorm.{{p}}", f"{_PREDICTOR}.transformer.decoder.norm.{{p}}"),
        Rule(f"{_QUERIES}.queries_embedder.weight", f"{_PREDICTOR}.query_embed.weight"),
        Rule(f"{_QUERIES}.input_projection.{{p}}", f"{_PREDICTOR}.input_proj.{{p}}"),
        Rule("class_predictor.{p}", f"{_PREDICTOR}.class_embed.{{p}}"),
        Rule("mask_embedder.{k}.0.{p}", f"{_PREDICTOR}.mask_embed.layers.{{k}}.{{p}}"),
        Rule("criterion.empty_weight", "criterion.empty_weight"),
    )


MASK2FORMER_RULES = (
    *_swin_rules(_ENCODER, "stage{i+1}"),
    *_resnet_rules(),
    *_pixel_decoder_rules(),
    *_masked_decoder_rules(),
)
MASKFORMER_RULES = (
    *_swin_rules(f"{_ENCODER}.model", "{i}"),
    *_resnet_rules(),
    *_fpn_rules(),
    *_standard_decoder_rules(),
)
