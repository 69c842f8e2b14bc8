"""Checkpoints of the shapes that GPUs are measured with: random bfloat16 weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.checkpoints import make_tokenizer

_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# Named after the models that have these shapes; rotary embeddings without their scaling.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
}


def make_checkpoint(
    shape: str, folder: Path, *, device: torch.device, changes: Mapping[str, Any] | None = None
) -> Path:
    """Writes a checkpoint, if it is not there, and returns its folder. Weights come from a seed.

    Args:
        shape: One of `SHAPES`.
        folder: Where the checkpoints are.
        device: Where random numbers are drawn.
        changes: To the shape's configuration.
    """
    path = folder / shape
    if (path / "config.json").exists():
        return path
    values = {**SHAPES[shape], **(changes or {})}
    config = AutoConfig.for_model(**values, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    unfinished = folder / f"{shape}.unfinished"
    make_tokenizer().save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    return unfinished.rename(path)


def config_of(path: Path) -> Mapping[str, int]:
    """Returns a checkpoint's configuration."""
    found: Mapping[str, int] = json.loads((path / "config.json").read_text())
    return found


def main() -> None:
    """Writes the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0", type=torch.device)
    args = parser.parse_args()
    make_checkpoint(args.shape, args.folder, device=args.device)
    print(json.dumps({"made": args.shape}))


if __name__ == "__main__":
    main()
