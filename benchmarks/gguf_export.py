"""Writes a Llama checkpoint as a GGUF file, so that peers run the same weights.

python -m benchmarks.gguf_export CHECKPOINT MODEL.gguf --type f16
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

FloatArray = NDArray[np.float32]

_F32 = gguf.GGMLQuantizationType.F32


@dataclass(frozen=True, slots=True)
class StorageType:
    """How matrices are stored; vectors are float32 always."""

    tensor: gguf.GGMLQuantizationType
    file: gguf.LlamaFileType


TYPES: Mapping[str, StorageType] = {
    "f32": StorageType(_F32, gguf.LlamaFileType.ALL_F32),
    "f16": StorageType(gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": StorageType(gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def export(checkpoint: Path, path: Path, storage: StorageType) -> None:
    """Writes a checkpoint of the class `LlamaForCausalLM`, with its tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(checkpoint.name)
    writer.add_file_type(storage.file)
    _add_sizes(writer, config)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, config, json.loads((checkpoint / "tokenizer.json").read_text()))
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        rows = _row_order(name, weight.astype(np.float32), config)
        kind = storage.tensor if weight.ndim == 2 else _F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Returns what a weight of transformers is called in GGUF."""
    stem = name.removesuffix(".weight")
    if stem in _OTHER_NAMES:
        return f"{_OTHER_NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def interleaved(weight: FloatArray, num_heads: int) -> FloatArray:
    """Returns a projection whose rotated pairs of rows lie side by side.

    transformers rotates the first half of a head's rows against the second, GGUF's Llama each even
    row against the next.

    Args:
        weight: [H * D, E].
        num_heads: H.
    """
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])  # [H, 2, D / 2, E]
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _row_order(name: str, weight: FloatArray, config: Mapping[str, int]) -> FloatArray:
    if name.endswith("q_proj.weight"):
        return interleaved(weight, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return interleaved(weight, config["num_key_value_heads"])
    return weight


def _add_sizes(writer: gguf.GGUFWriter, config: Mapping[str, int]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: gguf.GGUFWriter, config: Mapping[str, int], tokenizer: dict[str, Any]
) -> None:
    tokens = [""] * config["vocab_size"]
    types = [gguf.TokenType.NORMAL] * config["vocab_size"]
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index] = token
    for entry in tokenizer["added_tokens"]:
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("output", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices")
    args = parser.parse_args()
    export(args.checkpoint, args.output, TYPES[args.type])


if __name__ == "__main__":
    main()
