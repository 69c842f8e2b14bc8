"""Counts what a template does while it is rendered, and stops it where that is too much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import NoReturn

from jinja2 import TemplateRuntimeError

from furiosa_llm.row_limits import (
    MAX_TEMPLATE_CHARACTERS,
    MAX_TEMPLATE_OPERATIONS,
    MAX_TEMPLATE_SECONDS,
)
from furiosa_llm.templates.sizes import SIZE_OF_ITEM

_TEXTS_MADE = 16  # of the largest size, until a template has made enough


class TemplateTooCostlyError(TemplateRuntimeError):
    """A template does more than a row is worth."""


class Work:
    """How much one rendering has done."""

    def __init__(self) -> None:
        self.num_operations = 0
        self.size_made = 0
        self.deadline = time.monotonic() + MAX_TEMPLATE_SECONDS

    def count(self) -> None:
        """Counts a round of a loop or a call of a macro.

        Raises:
            TemplateTooCostlyError: They are too many, or took too long.
        """
        self.num_operations += 1
        if self.num_operations > MAX_TEMPLATE_OPERATIONS:
            raise TemplateTooCostlyError(
                f"it takes more than {MAX_TEMPLATE_OPERATIONS:,} rounds of loops or calls of macros"
            )
        if time.monotonic() > self.deadline:
            self._stop()

    def make(self, size: int) -> None:
        """Counts the characters of a text, or the items of a list, that is about to be made.

        Raises:
            TemplateTooCostlyError: It, or all of them together, would be too large or took too
                long.
        """
        require_size(size)
        self.size_made += size
        if self.size_made > _TEXTS_MADE * MAX_TEMPLATE_CHARACTERS:
            raise TemplateTooCostlyError(
                f"it makes more than {_TEXTS_MADE} times {MAX_TEMPLATE_CHARACTERS:,} characters"
            )
        if time.monotonic() > self.deadline:
            self._stop()

    def gather(self, values: Iterator[object]) -> list[object]:
        """Makes a list of what comes one by one.

        Raises:
            TemplateTooCostlyError: It is too much.
        """
        gathered = list(islice(values, MAX_TEMPLATE_CHARACTERS // SIZE_OF_ITEM + 1))
        self.make(SIZE_OF_ITEM * len(gathered))
        return gathered

    def _stop(self) -> NoReturn:
        raise TemplateTooCostlyError(f"it takes longer than {MAX_TEMPLATE_SECONDS:g} seconds")


def require_size(size: int) -> None:
    """Checks the characters of one text.

    Raises:
        TemplateTooCostlyError: They are too many.
    """
    if size > MAX_TEMPLATE_CHARACTERS:
        raise TemplateTooCostlyError(f"it makes more than {MAX_TEMPLATE_CHARACTERS:,} characters")
