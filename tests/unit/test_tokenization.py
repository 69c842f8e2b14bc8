from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from furiosa_llm.detokenization import Detokenizer, StopStringFinder
from furiosa_llm.errors import ConfigError, InvalidRowError, ModelLoadError
from furiosa_llm.tokenization import Tokenizer
from tests.checkpoints import make_tokenizer

TINY_LLAMA = Path(__file__).parents[2] / "samples" / "tiny-llama"
END = 2  # the token that ends an answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return Tokenizer(str(path))


@given(text=st.text(max_size=40))
def test_text_put_together_token_by_token_is_the_whole_text(
    tokenizer: Tokenizer, text: str
) -> None:
    token_ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)

    pieces = [detokenizer.push(token_id) for token_id in token_ids]

    assert "".join(pieces) + detokenizer.flush() == text


@given(token_ids=st.lists(st.integers(3, 258), max_size=30))
def test_any_bytes_put_together_token_by_token_are_what_they_decode_to_at_once(
    tokenizer: Tokenizer, token_ids: list[int]
) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)

    text = "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()

    assert text == tokenizer.decode(token_ids, skip_special_tokens=True)


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    first, *rest = tokenizer.encode("é")
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)

    assert detokenizer.push(first) == ""
    assert "".join(map(detokenizer.push, rest)) == "é"


@given(places=st.lists(st.integers(0, 8), max_size=40))
def test_many_halves_of_characters_are_what_they_decode_to_at_once(
    tokenizer: Tokenizer, places: list[int]
) -> None:
    choices = [END, *tokenizer.encode("漢😀a")]
    token_ids = [choices[place] for place in places]
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)

    text = "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()

    assert text == tokenizer.decode(token_ids, skip_special_tokens=True)


class CountingTokenizer:
    """Counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.num_decoded = 0
        self._tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.num_decoded += len(token_ids)
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("text", ["</s>", "first of 漢", "last of 漢", "a"])
def test_a_token_costs_no_more_the_longer_the_answer_is(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text.removeprefix("first of ").removeprefix("last of "))
    token_id = token_ids[-1 if text.startswith("last") else 0]
    counting = CountingTokenizer(tokenizer)
    detokenizer = Detokenizer(cast(Tokenizer, counting), skip_special_tokens=True)

    for _ in range(1000):
        detokenizer.push(token_id)

    assert counting.num_decoded < 40 * 1000


@given(
    text=st.text(alphabet="ab", max_size=12),
    stop_strings=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_a_stop_string_is_found_when_it_is_complete_and_not_later(
    text: str, stop_strings: list[str], sizes: list[int]
) -> None:
    finder = StopStringFinder(stop_strings)
    end = 0
    for size in sizes:
        new = text[end : end + size]
        end += len(new)
        found = finder.find(text[:end], len(new))
        hits = [
            (position, stop)
            for stop in stop_strings
            for position in range(end)
            if text[:end].startswith(stop, position) and position + len(stop) > end - len(new)
        ]
        assert found == ((min(hits)[1], min(hits)[0]) if hits else None)


def test_the_length_of_another_stop_string_does_not_matter() -> None:
    assert StopStringFinder(("ab", "x" * 10)).find("ab12", 1) is None


def test_messages_are_rendered_by_the_chat_template(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode_rendered(
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
    )

    text = tokenizer.decode(token_ids, skip_special_tokens=False)

    assert text == "<s>user: hi\nassistant: "


def test_messages_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    plain = make_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path)

    with pytest.raises(InvalidRowError, match="no chat template"):
        Tokenizer(str(tmp_path)).render_chat([{"role": "user", "content": "hi"}])


def test_a_missing_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot load a tokenizer: no such folder"):
        Tokenizer(str(tmp_path / "nothing"))


def test_prompts_get_no_special_tokens_if_they_are_to_get_none() -> None:
    usual = Tokenizer(str(TINY_LLAMA))
    bare = Tokenizer(str(TINY_LLAMA), add_special_tokens=False)

    first, *rest = usual.encode("What is 2")

    assert usual.decode([first], skip_special_tokens=True) == ""
    assert bare.encode("What is 2") == rest
    assert bare.encode_batch(["What is 2", "a"]) == [rest, usual.encode("a")[1:]]


def test_the_slow_tokenizer_is_taken_where_there_is_one(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)

    tokenizer = Tokenizer(str(tmp_path), mode="slow")

    assert tokenizer.decode(tokenizer.encode("slow"), skip_special_tokens=True) == "slow"


def test_the_slow_tokenizer_is_refused_where_there_is_only_a_fast_one(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=r"only a fast tokenizer .* use --tokenizer-mode auto"):
        Tokenizer(str(tmp_path), mode="slow")
