"""Tokens to text while an answer grows, and the strings that end it."""

from __future__ import annotations

from collections.abc import Sequence

from furiosa_llm.tokenization import Tokenizer

_REPLACEMENT = "\ufffd"  # what bytes decode to that are not (yet) a character
_MOST_HELD_BACK = 8  # tokens of half a character


class Detokenizer:
    """Turns the tokens of a growing answer into text, piece by piece.

    A character may be cut across tokens, and a token's text may depend on the one before it.
    So each piece is decoded together with the tokens of the piece before, and held back while
    it ends in the middle of a character. Of many bytes that make no characters, all are handed out
    but the last ones, so that a long answer of them does not take ever longer.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        self._context_start = 0  # tokens [context_start, read_stop) are decoded as context
        self._read_stop = 0  # tokens before this one have been turned into text

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that is certain by now and was not before."""
        self._token_ids.append(token_id)
        context, text = self._decode_tail()
        if len(text) > len(context) and not text.endswith(_REPLACEMENT):
            return self._take(len(self._token_ids), text[len(context) :])
        if self._is_skipped(token_id):
            self._token_ids.pop()
        elif len(self._token_ids) - self._read_stop > _MOST_HELD_BACK and text != context:
            return self._take_sure(context, text)
        return ""

    def flush(self) -> str:
        """Returns what was held back; the answer has ended."""
        context, text = self._decode_tail()
        self._context_start = self._read_stop = len(self._token_ids)
        return text[len(context) :]

    def _take(self, stop: int, text: str) -> str:
        """Books the tokens before `stop` as turned into text."""
        self._context_start, self._read_stop = self._read_stop, stop
        return text

    def _take_sure(self, context: str, text: str) -> str:
        """Takes what no further token can change: no character goes from there to the rest."""
        for stop in range(len(self._token_ids) - 1, self._read_stop, -1):
            rest = self._decode(self._token_ids[stop:])
            sure = self._decode(self._token_ids[self._context_start : stop])
            if sure + rest == text:
                return self._take(stop, sure[len(context) :])
        return self._take(len(self._token_ids), text[len(context) :])

    def _is_skipped(self, token_id: int) -> bool:
        """Whether it is a special token, of which the text shows nothing wherever it stands."""
        return (
            self._skip_special_tokens
            and not self._decode([token_id])
            and self._tokenizer.decode([token_id], skip_special_tokens=False) != ""
        )

    def _decode_tail(self) -> tuple[str, str]:
        tail = self._token_ids[self._context_start :]
        return (
            self._decode(tail[: self._read_stop - self._context_start]),
            self._decode(tail),
        )

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class StopStringFinder:
    """Looks for stop strings in a growing text, also across the borders of its pieces."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop_strings)

    def find(self, text: str, num_new: int) -> tuple[str, int] | None:
        """Returns the first stop string that the last `num_new` characters complete.

        Returns:
            The stop string and where it begins in `text`, or None.
        """
        found = []
        for stop_string in self._stop_strings:
            position = text.find(stop_string, max(len(text) - num_new - len(stop_string) + 1, 0))
            if position >= 0:
                found.append((position, stop_string))
        if not found:
            return None
        position, stop_string = min(found)
        return stop_string, position

    def num_begun(self, text: str) -> int:
        """Returns how many of the last characters may be the beginning of a stop string."""
        return max((_num_begun(text, stop_string) for stop_string in self._stop_strings), default=0)


def _num_begun(text: str, stop_string: str) -> int:
    position = max(len(text) - len(stop_string) + 1, 0)
    while (position := text.find(stop_string[0], position)) >= 0:
        if stop_string.startswith(text[position:]):
            return len(text) - position
        position += 1
    return 0
