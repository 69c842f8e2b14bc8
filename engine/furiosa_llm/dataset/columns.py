"""Which columns of an input row hold the prompt and the sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from furiosa_llm.errors import ConfigError, InvalidRowError
from furiosa_llm.sampling_params import PARAMETER_NAMES

if TYPE_CHECKING:
    from jinja2 import Template

PROMPT_COLUMNS = ("prompt", "messages", "prompt_token_ids")

_MAX_SHOWN = 120


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Which columns of an input row hold the prompt and the sampling parameters.

    Attributes:
        prompt_column: Column of the prompt, instead of the usual three.
        params_column: Column of the row's own parameters, instead of `sampling_params`.
        template: Jinja text that makes the prompt out of the row's columns. They are known by
            name, and all of them as `row`.
        consumed: The columns that do not go through to the output.

    Raises:
        ConfigError: The template cannot be parsed, or is given together with a prompt column.
    """

    prompt_column: str | None = None
    params_column: str | None = None
    template: str | None = None
    consumed: frozenset[str] = field(init=False, repr=False, compare=False)
    _template: Template | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.template is not None and self.prompt_column is not None:
            raise ConfigError(
                f"--template and --prompt-column ({self.prompt_column}) both make the prompt; "
                "give one of them"
            )
        consumed = PARAMETER_NAMES | {self.params_name}
        if self.prompt_column is not None:
            consumed |= {self.prompt_column}
        elif self.template is None:
            consumed |= set(PROMPT_COLUMNS)
        object.__setattr__(self, "consumed", consumed)
        object.__setattr__(self, "_template", _compiled(self.template))

    @property
    def params_name(self) -> str:
        """The column that may hold an object of sampling parameters."""
        return "sampling_params" if self.params_column is None else self.params_column

    @property
    def maps_prompt(self) -> bool:
        """Whether the prompt is somewhere else than in the usual columns."""
        return self.template is not None or self.prompt_column is not None

    def render(self, data: Mapping[str, object]) -> str:
        """Makes the prompt of one row from the template.

        Raises:
            InvalidRowError: The template needs a column that the row lacks, or fails on a value.
        """
        from furiosa_llm.templates.environment import RENDERING_ERRORS

        assert self._template is not None, "render() without a template"
        try:
            text = self._template.render({"row": data, **data})
            text.encode()  # a template can make half of a surrogate pair
        except RENDERING_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InvalidRowError(
                f"the template fails on this row: {reason[:_MAX_SHOWN]}"
            ) from error
        return text


def _compiled(template: str | None) -> Template | None:
    if template is None:
        return None
    from jinja2 import StrictUndefined, TemplateSyntaxError

    from furiosa_llm.templates.environment import BoundedEnvironment

    environment = BoundedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"--template cannot be parsed: line {error.lineno}: {error.message}"
        ) from error
