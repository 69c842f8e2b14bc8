"""A prompt that is refused by its length alone would have been too long in any case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from furiosa_llm.errors import PromptTooLongError
from furiosa_llm.token_bounds import bytes_per_token
from furiosa_llm.tokenization import Tokenizer

TINY = Path(__file__).parents[2] / "samples" / "tiny-llama"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = [("a", "b"), ("ab", "ab"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")]


def byte_level(
    normalizer: Any = None, *, add: AddedToken | None = None, letters: int = 256
) -> tokenizers.Tokenizer:
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())[-letters:]
    tokens += [first + second for first, second in MERGES]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=MERGES)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if add is not None:
        tokenizer.add_special_tokens([add])
    return tokenizer


def sentence_piece(*, byte_fallback: bool = True) -> tokenizers.Tokenizer:
    tokens = ["<unk>", *BYTES, "▁", "a", "b", "ab", "▁▁"]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[("a", "b"), ("▁", "▁")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


KNOWN = [
    byte_level(),
    byte_level(normalizers.NFC()),
    byte_level(add=AddedToken("<|a long special token|>")),
    sentence_piece(),
    tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json")),
]
TEXTS = st.text() | st.text("ab ") | st.text("e\u0301\u1100\u1161\u11a8\u2126\u0345\u0313")


@given(TEXTS, st.integers(1, 30))
def test_no_token_stands_for_more_bytes_than_the_bound(text: str, times: int) -> None:
    for tokenizer in KNOWN:
        limit = bytes_per_token(tokenizer.to_str())

        assert limit is not None
        assert len((text * times).encode()) <= limit * len(tokenizer.encode(text * times).ids)


def test_the_bound_is_that_of_the_longest_token() -> None:
    limits = [bytes_per_token(tokenizer.to_str()) for tokenizer in KNOWN[:4]]

    assert limits == [4, 32, len("<|a long special token|>"), 6]


@pytest.mark.parametrize(
    "make",
    [
        lambda: byte_level(normalizers.Strip()),
        lambda: byte_level(normalizers.NFKC()),
        lambda: byte_level(normalizers.Replace("  ", " ")),
        lambda: byte_level(normalizers.Replace(tokenizers.Regex("a+"), "aaaaaaaaaa")),
        lambda: byte_level(add=AddedToken("<x>", lstrip=True)),
        lambda: byte_level(add=AddedToken("<x>", rstrip=True)),
        lambda: byte_level(add=AddedToken("<x>", normalized=True)),
        lambda: byte_level(letters=200),
        lambda: sentence_piece(byte_fallback=False),
        lambda: tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
    ],
)
def test_there_is_no_bound_where_text_may_get_lost(
    make: Callable[[], tokenizers.Tokenizer],
) -> None:
    assert bytes_per_token(make().to_str()) is None


def test_a_prompt_of_megabytes_is_refused_without_tokenizing_it() -> None:
    tokenizer = Tokenizer(str(TINY))
    tokenizer.check_length("Ab" * 200, max_num_tokens=512)  # it may fit

    with pytest.raises(PromptTooLongError, match=r"has 5000000 bytes, which are at least \d+ tok"):
        tokenizer.check_length("a" * 5_000_000, max_num_tokens=512)
