"""Tensor names of the library transformers for Mask2Former, MaskFormer and OneFormer, beside ours.

Its files bear the names of its release 4.26 to this day. In memory, release 5 calls parts of Swin otherwise: a state
dict that was saved by hand bears those names, which are read and never written.
"""

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
    ours = "backbone.layers.{i}.blocks.{j}"
    block = f"{prefix}.encoder.layers.{{i}}.blocks.{{j}}"
    attention = f"{block}.attention.self"
    return (
        *_swin_stage_rules(prefix),
        Rule(f"{attention}.relative_position_bias_table", f"{ours}.attn.relative_position_bias_table"),
        Rule(tuple(f"{attention}.{part}.{{p}}" for part in ("query", "key", "value")), f"{ours}.attn.qkv.{{p}}"),
        Rule(f"{block}.attention.output.dense.{{p}}", f"{ours}.attn.proj.{{p}}"),
        Rule(f"{block}.intermediate.dense.{{p}}", f"{ours}.mlp.fc1.{{p}}"),
        Rule(f"{block}.output.dense.{{p}}", f"{ours}.mlp.fc2.{{p}}"),
        Rule(f"{_ENCODER}.hidden_states_norms.{norms}.{{p}}", "backbone.norm{i}.{p}"),
        *_swin_rules_in_memory(f"{_ENCODER}.swin"),
    )


def _swin_rules_in_memory(prefix: str) -> tuple[Rule, ...]:
    ours = "backbone.layers.{i}.blocks.{j}"
    block = f"{prefix}.encoder.layers.{{i}}.blocks.{{j}}"
    attention, table = f"{block}.attention", "relative_position_bias_table"
    parts = ("q_proj", "k_proj", "v_proj")
    return (
        *_swin_stage_rules(prefix),
        Rule(f"{attention}.relative_position_bias.{table}", f"{ours}.attn.{table}"),
        Rule(tuple(f"{attention}.{part}.{{p}}" for part in parts), f"{ours}.attn.qkv.{{p}}"),
        Rule(f"{attention}.o_proj.{{p}}", f"{ours}.attn.proj.{{p}}"),
        Rule(f"{block}.mlp.fc{{k}}.{{p}}", f"{ours}.mlp.fc{{k}}.{{p}}"),
    )


def _swin_stage_rules(prefix: str) -> tuple[Rule, ...]:
    """Return what both spellings share below ``prefix``: embedding, norms and merging."""
    block, ours = f"{prefix}.encoder.layers.{{i}}.blocks.{{j}}", "backbone.layers.{i}.blocks.{j}"
    return (
        Rule(f"{prefix}.embeddings.patch_embeddings.projection.{{p}}", "backbone.patch_embed.proj.{p}"),
        Rule(f"{prefix}.embeddings.norm.{{p}}", "backbone.patch_embed.norm.{p}"),
        Rule(f"{block}.layernorm_before.{{p}}", f"{ours}.norm1.{{p}}"),
        Rule(f"{block}.layernorm_after.{{p}}", f"{ours}.norm2.{{p}}"),
        Rule(
            f"{prefix}.encoder.layers.{{i}}.downsample.reduction.weight",
            "backbone.layers.{i}.downsample.reduction.weight",
        ),
        Rule(f"{prefix}.encoder.layers.{{i}}.downsample.norm.{{p}}", "backbone.layers.{i}.downsample.norm.{p}"),
    )


def _dinat_rules() -> tuple[Rule, ...]:
    level, ours = f"{_ENCODER}.encoder.levels.{{i}}", "backbone.levels.{i}"
    layer, block = f"{level}.layers.{{j}}", f"{ours}.blocks.{{j}}"
    attention = f"{layer}.attention.self"
    return (
        Rule(f"{_ENCODER}.embeddings.patch_embeddings.projection.{{i}}.{{p}}", "backbone.patch_embed.proj.{i}.{p}"),
        Rule(f"{layer}.layernorm_before.{{p}}", f"{block}.norm1.{{p}}"),
        Rule(f"{layer}.layernorm_after.{{p}}", f"{block}.norm2.{{p}}"),
        Rule(f"{attention}.rpb", f"{block}.attn.rpb"),
        Rule(tuple(f"{attention}.{part}.{{p}}" for part in ("query", "key", "value")), f"{block}.attn.qkv.{{p}}"),
        Rule(f"{layer}.attention.output.dense.{{p}}", f"{block}.attn.proj.{{p}}"),
        Rule(f"{layer}.intermediate.dense.{{p}}", f"{block}.mlp.fc1.{{p}}"),
        Rule(f"{layer}.output.dense.{{p}}", f"{block}.mlp.fc2.{{p}}"),
        Rule(f"{level}.downsample.reduction.weight", f"{ours}.downsample.reduction.weight"),
        Rule(f"{level}.downsample.norm.{{p}}", f"{ours}.downsample.norm.{{p}}"),
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
        *_whole_attention(f"{layer}.cross_attn", f"{cross_attention}.multihead_attn"),
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


def _task_decoder_rules() -> tuple[Rule, ...]:
    """Return the rules of OneFormer's decoder, whose layers bear names close to ours."""
    decoder = f"{_QUERIES}.decoder"
    layer, made = f"{decoder}.layers.{{i}}", "query_transformer.decoder"
    own_attention = f"{_PREDICTOR}.transformer_self_attention_layers.{{i}}"
    cross_attention = f"{_PREDICTOR}.transformer_cross_attention_layers.{{i}}"
    feed_forward = f"{_PREDICTOR}.transformer_ffn_layers.{{i}}"
    ours = f"{_PREDICTOR}.class_transformer.decoder"
    attention = (f"{layer}.cross_attn.multihead_attn", f"{cross_attention}.multihead_attn")
    return (
        *_separate_attention(f"{layer}.self_attn.self_attn", f"{own_attention}.self_attn"),
        Rule(f"{layer}.self_attn.norm.{{p}}", f"{own_attention}.norm.{{p}}"),
        *_whole_attention(*attention),
        Rule(f"{layer}.cross_attn.norm.{{p}}", f"{cross_attention}.norm.{{p}}"),
        Rule(f"{layer}.ffn.linear{{k}}.{{p}}", f"{feed_forward}.linear{{k}}.{{p}}"),
        Rule(f"{layer}.ffn.norm.{{p}}", f"{feed_forward}.norm.{{p}}"),
        *(
            rule
            for part in ("self_attn", "multihead_attn")
            for rule in _whole_attention(f"{decoder}.{made}.layers.{{i}}.{part}", f"{ours}.layers.{{i}}.{part}")
        ),
        Rule(f"{decoder}.{made}.layers.{{i}}.{{q}}.{{p}}", f"{ours}.layers.{{i}}.{{q}}.{{p}}"),
        Rule(f"{decoder}.{made}.norm.{{p}}", f"{ours}.norm.{{p}}"),
        Rule(f"{decoder}.decoder_norm.{{p}}", f"{_PREDICTOR}.decoder_norm.{{p}}"),
        Rule(f"{_QUERIES}.queries_embedder.weight", f"{_PREDICTOR}.query_embed.weight"),
        Rule(f"{_QUERIES}.level_embed.weight", f"{_PREDICTOR}.level_embed.weight"),
        Rule(f"{_QUERIES}.input_projections.{{i}}.{{p}}", f"{_PREDICTOR}.input_proj.{{i}}.{{p}}"),
        Rule(f"{decoder}.query_input_projection.{{p}}", f"{_PREDICTOR}.class_input_proj.{{p}}"),
        Rule(f"{decoder}.class_embed.{{p}}", f"{_PREDICTOR}.class_embed.{{p}}"),
        Rule(f"{decoder}.mask_embed.layers.{{k}}.0.{{p}}", f"{_PREDICTOR}.mask_embed.layers.{{k}}.{{p}}"),
    )


def _whole_attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return query, key and value projections that both keep as one."""
    return (
        Rule(f"{theirs}.{{p}}", f"{ours}.{{p}}"),
        Rule(f"{theirs}.out_proj.{{p}}", f"{ours}.out_proj.{{p}}"),
    )


def _task_and_text_rules() -> tuple[Rule, ...]:
    """Return the rules of OneFormer's task token, and of its text branch, which is of training alone."""
    text, layer = "model.text_mapper", "model.text_mapper.text_encoder.transformer.layers.{i}"
    block = "text_encoder.transformer.resblocks.{i}"
    return (
        Rule("model.task_encoder.task_mlp.layers.{k}.0.{p}", "task_mlp.layers.{k}.{p}"),
        *_whole_attention(f"{layer}.self_attn", f"{block}.attn"),
        Rule(f"{layer}.layer_norm{{k}}.{{p}}", f"{block}.ln_{{k}}.{{p}}"),
        Rule(f"{layer}.mlp.fc1.{{p}}", f"{block}.mlp.c_fc.{{p}}"),
        Rule(f"{layer}.mlp.fc2.{{p}}", f"{block}.mlp.c_proj.{{p}}"),
        Rule(f"{text}.text_encoder.positional_embedding", "text_encoder.positional_embedding"),
        Rule(f"{text}.text_encoder.ln_final.{{p}}", "text_encoder.ln_final.{p}"),
        Rule(f"{text}.text_encoder.token_embedding.weight", "text_encoder.token_embedding.weight"),
        Rule(f"{text}.text_projector.layers.{{k}}.0.{{p}}", "text_projector.layers.{k}.{p}"),
        Rule(f"{text}.prompt_ctx.weight", "prompt_ctx.weight"),
        Rule("criterion.{p}", "criterion.{p}"),
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
ONEFORMER_RULES = (
    *_swin_rules(_ENCODER, "stage{i+1}"),
    *_dinat_rules(),
    *_resnet_rules(),
    *_pixel_decoder_rules(),
    *_task_decoder_rules(),
    *_task_and_text_rules(),
)
