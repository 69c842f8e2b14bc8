"""Tiny checkpoints with random weights of any causal language model that transformers has.

A configuration is the default one of its class, with every size shrunk by the name of its field
(`SIZES`). `OVERRIDES` holds the few fields that belong together in a way that names do not say.
"""

from __future__ import annotations

import dataclasses
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.checkpoints import make_tokenizer

VOCAB_SIZE = 300
MAX_MODEL_LEN = 512
NUM_LAYERS = 4

# The first pattern that a whole field name matches says how large the field may be.
SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*|encoder_hash_byte_group_vocab|ngram_vocab_size_base", VOCAB_SIZE),
    (r".*max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length", MAX_MODEL_LEN),
    (r"max_(source|target)_positions", MAX_MODEL_LEN),
    (r"(num_(hidden|encoder|decoder)_layers|n_layers?|num_layers|depth)", NUM_LAYERS),
    (r"(encoder|decoder)_layers", NUM_LAYERS),
    (r"(num|n)_(kv|key_value)_heads|.*_num_key_value_heads", 2),
    (r"num_key_value_heads", 2),
    (r".*(num_)?(attention|key|value|mamba|linear|encoder|decoder)_heads|n_heads?|num_heads", 4),
    (r"index_n_heads|mamba_n_heads|mamba_num_heads|linear_num_heads", 4),
    (r".*head_dim|.*head_size|dim_head|kv_channels|d_kv|rotary_dim", 16),
    (r".*lora_rank|.*_rank", 16),
    (r"(moe_|n_|num_)?(routed_|local_)?(num_)?experts|moe_num_experts|zero_expert_num", 4),
    (r".*experts_per_tok|moe_topk|moe_k", 2),
    (r"n_group", 2),
    (r"query_pre_attn_scalar", 16),
    (r"topk_group", 1),
    (r".*(intermediate|ffn|feed_forward|dff|d_ff|d_inner|ffn_hidden|mlp).*(size|dim)?", 96),
    (r"dim_ff", 96),
    (r".*(hidden_size|embed_dim|embedding_size|emb_dim|embd|d_model)(_per_layer_input)?", 64),
    (r"word_embed_proj_dim|output_dim|out_hidden_size|router_hidden_size", 64),
    (r".*sliding_window|.*window_size|local_attention|attention_chunk_size", 24),
    (r".*window_pattern|global_attn_every_n_layers|no_rope_layer_interval", 2),
    (r"index_topk", 8),
    (r"(first_k_dense_replace|num_dense_layers)", 1),
)
EOS_TOKEN_ID = 2
_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS_TOKEN_ID}
_TOKEN_ID = re.compile(r".*(token_id|token_index|_index)s?$")

_HEAD_DIM = {"head_dim": 16}
_ALL_HEADS = {"num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
_ASSISTANT = {
    "model_type": "gemma4_text",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": NUM_LAYERS,
}

_ONE_CHUNK = {"attention_chunk_size": MAX_MODEL_LEN, "floor_scale": MAX_MODEL_LEN}

# By model type; a part such as `text_config` is overridden by a table of its own.
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _ALL_HEADS,
    "blenderbot": {"max_position_embeddings": MAX_MODEL_LEN, "encoder_layers": NUM_LAYERS},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {**_ALL_HEADS, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 2},
    "deepseek_v3": _ALL_HEADS,
    "dots1": {**_HEAD_DIM, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": _ALL_HEADS,
        "vision_config": {
            "adapter_in_dim": 64,
            "adapter_out_dim": 64,
            "mlp_layer_types": ["dense"] * NUM_LAYERS,
        },
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": _ALL_HEADS,
    "gemma3n_text": _SHARED,
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gemma4_text": _SHARED,
    "gemma4_unified_assistant": {
        "text_config": {"model_type": "gemma4_unified_text", "num_kv_shared_layers": NUM_LAYERS}
    },
    "glm4_moe_lite": _ALL_HEADS,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": _HEAD_DIM,
    "hunyuan_v1_moe": _HEAD_DIM,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"text_config": _ONE_CHUNK},
    "llama4_text": _ONE_CHUNK,
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "minicpm3": _ALL_HEADS,
    "ministral": _HEAD_DIM,
    "moshi": {"sliding_window": MAX_MODEL_LEN},  # as many as positions, by default too
    "nemotron": {**_HEAD_DIM, "num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "youtu": _ALL_HEADS,
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}


def model_types() -> list[str]:
    """Returns every model type that transformers maps to a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(model_type: str) -> str:
    """Returns the name of the class that a model type maps to."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return names if isinstance(names, str) else names[0]


def make_config(model_type: str) -> PretrainedConfig:
    """Returns a tiny configuration of a model type."""
    return _tiny(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def make_checkpoint(model_type: str, folder: Path, *, seed: int = 0) -> None:
    """Writes a tiny checkpoint, with a byte-level tokenizer."""
    make_tokenizer().save_pretrained(folder)
    config = make_config(model_type)
    config.save_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    _randomize(model)
    _center_logits(model.eval())
    model.save_pretrained(folder)
    if type(model.config) is not type(config):  # the text part of a larger model
        config.save_pretrained(folder)


def _tiny(config_class: type[PretrainedConfig], overrides: dict[str, Any]) -> PretrainedConfig:
    """Builds a configuration of a class with every size shrunk, then overridden."""
    parts = _part_classes(config_class, overrides)
    options = {
        **_small_fields(config_class),
        **{name: value for name, value in overrides.items() if name != "model_type"},
        **{name: _tiny(part, overrides.get(name, {})) for name, part in parts.items()},
    }
    config = config_class(**options)
    kinds = _kinds_of_layers(config_class)
    if set(kinds) <= set(getattr(config, "layer_types", None) or ()) or "layer_types" in overrides:
        return config
    layer_types = [kinds[index % len(kinds)] for index in range(NUM_LAYERS)]
    return config_class(**options, layer_types=layer_types)


def _part_classes(
    config_class: type[PretrainedConfig], overrides: dict[str, Any]
) -> dict[str, type[PretrainedConfig]]:
    """Returns the classes of the configurations within a configuration, by field."""
    classes = {}
    for name in config_class.sub_configs:
        if "model_type" in overrides.get(name, {}):
            classes[name] = CONFIG_MAPPING[overrides[name]["model_type"]]
        elif (part := getattr(config_class(), name, None)) is not None:
            classes[name] = type(part)
    return classes


def _kinds_of_layers(config_class: type[PretrainedConfig]) -> list[str]:
    """Returns the kinds of layers that a model of full size has, in the order in which they come.

    A model cut to a few layers may have lost some of them.
    """
    if "layer_types" not in {field.name for field in dataclasses.fields(config_class)}:
        return []
    return list(dict.fromkeys(config_class().layer_types or ()))


def _small_fields(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    values = {
        field.name: _tiny_value(field.name, field.default)
        for field in dataclasses.fields(config_class)
    }
    return {name: value for name, value in values.items() if value is not None}


def _tiny_value(name: str, default: object) -> int | float | None:
    """Returns the value of a field that must not stay as it is by default, else None."""
    if name == "is_decoder":
        return True
    if name in _SPECIAL_IDS:
        return _SPECIAL_IDS[name]
    if not isinstance(default, int) or isinstance(default, bool):
        return None
    if _TOKEN_ID.fullmatch(name):
        return min(default, VOCAB_SIZE - 1)
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return min(default, size)
    return None


def _randomize(model: PreTrainedModel) -> None:
    """Draws weights by which attention and every bias change the answer."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if "bias" in name or "sinks" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):  # else a token's answer would be itself
            torch.nn.init.normal_(module.weight, std=0.05)


def _center_logits(model: PreTrainedModel) -> None:
    """Takes out of the head what all hidden states have in common.

    Otherwise many random models would say the same token whatever they read, and their answers
    would not show how they attend.
    """
    head, hidden = model.get_output_embeddings(), []
    text = torch.randint(3, VOCAB_SIZE, (1, 64))
    handle = head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][0]))
    for _ in range(3):  # a head that shares the embedding's weights changes what it reads
        with (
            torch.no_grad(),
            suppress(LookupError, RuntimeError, TypeError, ValueError, AttributeError),
        ):
            model(input_ids=text, use_cache=False)
            common = torch.nn.functional.normalize(hidden[-1].mean(0), dim=0)  # [D]
            head.weight -= torch.outer(head.weight @ common, common)
    handle.remove()
