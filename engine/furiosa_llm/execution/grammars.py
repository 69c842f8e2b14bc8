"""Compiles the form that an answer must have into a grammar over the model's tokens."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from furiosa_llm.engine_limits import ModelInfo
from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.structured_outputs import FORMS, StructuredOutputs
from furiosa_llm.tokenization import Tokenizer

# One space, or a line break and indentation: without a bound, a model that likes blanks never
# comes to the next value.
JSON_BLANKS = r"( |\r?\n[ \t]{0,32})?"
MAX_COMPILED = 256
# About half of what llguidance takes: a grammar at the limits then needs a second to compile and a
# quarter of a second for a token, in place of ten.
LIMITS = {
    "max_grammar_size": 100_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 100_000,  # 1 to 2 KB each
    "step_max_items": 20_000,
}
_MAX_MESSAGE = 200


class Matcher(Protocol):
    """A grammar and the tokens of an answer so far, as llguidance keeps them."""

    def deep_copy(self) -> Matcher:
        """Returns another one that stands where this one does."""

    def consume_tokens(self, token_ids: Sequence[int]) -> bool:
        """Goes on by tokens of the answer."""

    def compute_bitmask(self) -> bytes:
        """Returns a bit for each token: whether it may come next."""

    def is_error(self) -> bool:
        """Tells whether it cannot go on."""

    def get_error(self) -> str:
        """Returns why."""


class Grammars:
    """The grammars of a model's tokenizer. It is made ready when the first one is asked for."""

    def __init__(
        self,
        load_tokenizer: Callable[[], Tokenizer],
        model_info: ModelInfo,
    ) -> None:
        self.vocab_size = model_info.vocab_size
        self._load_tokenizer = load_tokenizer
        self._eos_token_ids = sorted(model_info.eos_token_ids)
        self._tokenizer: Any = None  # llguidance's own, which takes up to a second to build
        self._compiled: OrderedDict[StructuredOutputs, Matcher | str] = OrderedDict()

    def check(self, structure: StructuredOutputs) -> None:
        """Compiles a form, to know whether it can be served.

        Raises:
            InvalidParamsError: It cannot, or not with this model, or not on this machine.
        """
        self.start(structure)

    def start(self, structure: StructuredOutputs) -> Matcher:
        """Returns the grammar of a form at the start of an answer.

        Raises:
            InvalidParamsError: As `check`.
        """
        compiled = self._compiled.get(structure)
        if compiled is None:
            compiled = self._compile(structure)
            self._compiled[structure] = compiled
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(structure)
        if isinstance(compiled, str):
            raise InvalidParamsError(compiled)
        return compiled.deep_copy()

    def _compile(self, structure: StructuredOutputs) -> Matcher | str:
        """Returns the grammar, or why there is none."""
        try:
            import llguidance
        except ImportError:
            return "structured_outputs needs the package llguidance, which is not installed"
        if self._tokenizer is None:
            self._tokenizer = self._build_tokenizer()
        try:
            matcher: Matcher = llguidance.LLMatcher(
                self._tokenizer,
                _grammar(structure),
                log_level=0,
                limits=llguidance.LLParserLimits(**LIMITS, verbose_errors=False),
            )
        except ValueError as error:
            return _refusal(structure, str(error))
        matcher.compute_bitmask()  # some limits are only met here
        return _refusal(structure, matcher.get_error()) if matcher.is_error() else matcher

    def _build_tokenizer(self) -> Any:
        import llguidance

        if not self._eos_token_ids:
            raise InvalidParamsError(
                "structured_outputs needs a model that has an end-of-sequence token"
            )
        text, num_tokens = self._load_tokenizer().definition()
        return llguidance.LLTokenizer(
            text, n_vocab=max(self.vocab_size, num_tokens), eos_token=self._eos_token_ids
        )


def _grammar(structure: StructuredOutputs) -> str:
    """Returns the form in llguidance's own notation."""
    from llguidance import LLMatcher

    grammar: str
    if structure.regex is not None:
        grammar = LLMatcher.grammar_from_regex(structure.regex)
    elif structure.grammar is not None:
        grammar = LLMatcher.grammar_from_lark(structure.grammar)
    elif structure.choice is not None:
        choices = " | ".join(json.dumps(text) for text in structure.choice)
        grammar = LLMatcher.grammar_from_lark(f"start: {choices}")
    else:
        schema = structure.json if structure.json is not None else {"type": "object"}
        grammar = LLMatcher.grammar_from_json_schema(
            schema, defaults={"whitespace_pattern": JSON_BLANKS}
        )
    return grammar


def _refusal(structure: StructuredOutputs, reason: str) -> str:
    form = next(name for name in FORMS if getattr(structure, name) not in (None, False))
    shown = " ".join(reason.split())[:_MAX_MESSAGE]
    return f"structured_outputs.{form} cannot be compiled: {shown}"
