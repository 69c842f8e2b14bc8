"""What a single row may ask for, so that no row can hold up the others. See docs/input.md."""

from __future__ import annotations

MAX_LINE_BYTES = 16 << 20  # of JSONL
MAX_DEPTH = 100  # levels of lists and objects
MAX_COLUMNS = (
    1000  # of a row; also the columns of the output whose types the input does not declare
)

MAX_TEMPLATE_OPERATIONS = 1_000_000  # rounds of loops and calls of macros
MAX_TEMPLATE_SECONDS = 5.0
MAX_TEMPLATE_CHARACTERS = 64 << 20  # of a text that a template makes, also in between

MAX_COMPLETIONS = 1024
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_CHOICES = 1024
MAX_FORM_CHARACTERS = 4 << 20  # of a schema, pattern or grammar, or of all choices

MAX_ERROR_CHARACTERS = 1000  # of the message in the column `error`
