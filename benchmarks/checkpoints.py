"""Checkpoints of real sizes with random weights: speed needs no trained model, and no download.

python -m benchmarks.checkpoints llama-135m FOLDER
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_VOCAB_SIZE = 49152
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Named after the models of the SmolLM2 family that have these shapes.
_SIZES: Mapping[str, Mapping[str, int]] = {
    "llama-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "llama-360m": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}
SHAPES = tuple(_SIZES)


def make_config(shape: str) -> LlamaConfig:
    """Returns the configuration of a shape."""
    return LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.05,
        **_SIZES[shape],
    )


def make_checkpoint(shape: str, folder: Path, *, seed: int = 0) -> None:
    """Writes a checkpoint. The same seed gives the same weights."""
    torch.manual_seed(seed)
    LlamaForCausalLM(make_config(shape)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer whose longer tokens are pairs of bytes, as many as fit.

    It has learnt nothing: workloads are tokens, and engines only need it to be there.
    """
    special = [PAD, BOS, EOS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_pairs = _VOCAB_SIZE - len(special) - len(alphabet)
    pairs = list(itertools.islice(itertools.product(alphabet, alphabet), num_pairs))
    entries = [*special, *alphabet, *(first + second for first, second in pairs)]
    vocab = {token: index for index, token in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Writes the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_checkpoint(args.shape, args.folder, seed=args.seed)


if __name__ == "__main__":
    main()
