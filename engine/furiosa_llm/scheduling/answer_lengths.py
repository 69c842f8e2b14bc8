"""How long answers are going to be, learnt from those that have ended."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate

_NUM_REMEMBERED = 256
_LEAST_EXPECTED = 256  # tokens of an answer of which nothing is known yet


class AnswerLengths:
    """Shares of their longest length that the last answers have reached.

    Shares, since answers that all run to `max_tokens` have one, and others at least a range.
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self._sorted: list[float] = []
        self._sums: list[float] = [0.0]  # of the leading ones of `_sorted`

    def learn(self, num_tokens: int, max_tokens: int) -> None:
        """Takes note of an answer that has ended."""
        self._last.append(num_tokens / max_tokens)
        self._sorted = sorted(self._last)
        self._sums = [0.0, *accumulate(self._sorted)]

    def expected_tokens_left(self, num_tokens: int, max_tokens: int) -> int:
        """Returns how many tokens an answer of `num_tokens` so far is expected to gain.

        It is taken to end like the mean of those that were longer. When there are none, it may
        become twice as long as it is.
        """
        num_shorter = bisect_right(self._sorted, num_tokens / max_tokens)
        num_longer = len(self._sorted) - num_shorter
        if num_longer:
            mean = (self._sums[-1] - self._sums[num_shorter]) / num_longer
            num_left = int(mean * max_tokens) + 1 - num_tokens
        else:
            num_left = max(num_tokens, _LEAST_EXPECTED)
        return min(num_left, max_tokens - num_tokens)
