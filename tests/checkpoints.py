"""Tiny checkpoints with random weights, one for each architecture that the tests name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 300
MAX_MODEL_LEN = 512

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_WINDOWED = ["sliding_attention", "full_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": {"head_dim": 16, **_EXPERTS},
    "Mistral": {"sliding_window": 24},
    "Gemma2": {
        "head_dim": 16,
        "sliding_window": 24,
        "layer_types": _WINDOWED,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "Gemma3Text": {"head_dim": 16, "sliding_window": 24, "layer_types": _WINDOWED},
    "Phi3": {},
    "Olmo2": {},
    "SmolLM3": {},
    "GPTNeoX": {"num_key_value_heads": None},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": MAX_MODEL_LEN},
    "GptOss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "layer_types": _WINDOWED,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "GPTJ": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 96,
        "n_positions": MAX_MODEL_LEN,
        "rotary_dim": 8,
    },
    "GPTNeo": {
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 24,
        "attention_types": [[["local", "global"], 1]],
    },
    "Falcon": {"multi_query": True},
    "FalconMultiHead": {"multi_query": False, "parallel_attn": False, "bias": True},
    "FalconGrouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "FalconAlibi": {"alibi": True},
    "Bart": {
        "d_model": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96,
        "is_decoder": True,
        "is_encoder_decoder": False,
        "init_std": 0.2,
    },
    "Whisper": {  # takes neither `position_ids` nor `logits_to_keep` by name
        "d_model": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 96,
        "max_target_positions": MAX_MODEL_LEN,
        "is_encoder_decoder": False,
        "begin_suppress_tokens": [],
        "init_std": 0.2,
    },
    "Llama4Text": {
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "attention_chunk_size": MAX_MODEL_LEN,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "floor_scale": MAX_MODEL_LEN,
    },
    "Granite": {"attention_multiplier": 0.25, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "Exaone4": {"sliding_window": 24, "layer_types": _WINDOWED},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 24,
        "moe_intermediate_size": 48,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "Doge": {},
    "Mamba": {"state_size": 8},
    "T5": {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 16},
}
_CLASS_NAMES = {
    "FalconAlibi": ("FalconConfig", "FalconForCausalLM"),
    "FalconGrouped": ("FalconConfig", "FalconForCausalLM"),
    "FalconMultiHead": ("FalconConfig", "FalconForCausalLM"),
    "Gemma3Text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Llama4Text": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "T5": ("T5Config", "T5ForConditionalGeneration"),
}


def make_checkpoint(
    name: str, folder: Path, *, seed: int = 0, changes: dict[str, Any] | None = None
) -> Path:
    """Writes a checkpoint of an architecture, with a byte-level tokenizer, and returns its path."""
    config_name, model_name = _CLASS_NAMES.get(name, (f"{name}Config", f"{name}ForCausalLM"))
    options = {
        key: value
        for key, value in {**_COMMON, **CONFIGS[name], **(changes or {})}.items()
        if value is not None
    }
    config = getattr(transformers, config_name)(**options)
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config)
    for parameter_name, parameter in model.named_parameters():
        if "sinks" in parameter_name or "bias" in parameter_name:
            torch.nn.init.normal_(parameter)
    path = folder / name
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes, after a few special ones."""
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast
