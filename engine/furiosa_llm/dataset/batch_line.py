"""Lines in the format of OpenAI's batch files: `custom_id`, `method`, `url`, `body`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from furiosa_llm.dataset.prompts import Prompt, chat_messages, shortened, text_prompt, token_ids
from furiosa_llm.errors import InvalidParamsError, InvalidRowError
from furiosa_llm.sampling_params import PARAMETER_NAMES

ENVELOPE_COLUMNS = frozenset({"method", "url", "body"})

_PROMPT_KEYS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
# They do not change the answer.
_IGNORED = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "parallel_tool_calls",
        "stream_options",
    }
)
_CHAT_LOGPROBS = ("logprobs", "top_logprobs")
_MAX_SHOWN = 80
_LENGTH_KEYS = ("max_tokens", "max_completion_tokens")


def is_batch_line(data: Mapping[str, object]) -> bool:
    """Whether a row is a line of a batch file."""
    return isinstance(data.get("body"), dict) and any(
        data.get(name) is not None for name in ("url", "method", "custom_id")
    )


def batch_prompt(data: Mapping[str, object]) -> Prompt:
    """Returns the prompt of a batch line.

    Raises:
        InvalidRowError: It is for another kind of request, or its prompt is missing or wrong.
    """
    url = data.get("url")
    key = _PROMPT_KEYS.get(url) if isinstance(url, str) else None
    if key is None:
        known = " or ".join(_PROMPT_KEYS)
        raise InvalidRowError(f"url must be {known}, got {shortened(url)}")
    value = cast("dict[str, object]", data["body"]).get(key)
    if value is None:
        raise InvalidRowError(f"body has no {key!r}, which {url} needs")
    if key == "messages":
        return chat_messages(value, "body.messages")
    if isinstance(value, list):
        return token_ids(value, "body.prompt")
    return text_prompt(value, "body.prompt")


def batch_params(data: Mapping[str, object]) -> dict[str, object]:
    """Returns the sampling parameters in the body of a batch line.

    Raises:
        InvalidParamsError: The body asks for something that is not supported.
    """
    body = cast("dict[str, object]", data["body"])
    prompt_key = _PROMPT_KEYS.get(str(data.get("url")))
    params: dict[str, object] = {}
    if prompt_key == "messages":
        params.update(_chat_logprobs(body))
        body = {key: value for key, value in body.items() if key not in _CHAT_LOGPROBS}
    params.update(_structure(body.get("response_format")))
    for key, value in body.items():
        if value is None or key in _IGNORED or key in (prompt_key, "response_format"):
            continue
        if key not in PARAMETER_NAMES and key not in _LENGTH_KEYS:
            if value is False or value in ([], {}, "none"):
                continue
            raise InvalidParamsError(
                f"body.{key[:_MAX_SHOWN]} is not supported, got {shortened(value)}; remove it"
            )
        params[key] = value
    return _with_one_length(params)


def _chat_logprobs(body: Mapping[str, object]) -> dict[str, object]:
    """Of a chat: `logprobs` says whether, and `top_logprobs` how many."""
    is_wanted, num_top = map(body.get, _CHAT_LOGPROBS)
    if is_wanted is not None and not isinstance(is_wanted, bool):
        raise InvalidParamsError(
            f"body.logprobs must be true or false, got {shortened(is_wanted)}; body.top_logprobs "
            "says how many"
        )
    if is_wanted:
        return {"logprobs": 0 if num_top is None else num_top}
    if num_top is not None:
        raise InvalidParamsError(
            f"body.top_logprobs needs body.logprobs to be true, got {shortened(num_top)} alone"
        )
    return {}


def _structure(response_format: object) -> dict[str, object]:
    """Reads the form of the answer that `response_format` asks for."""
    match response_format:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"structured_outputs": {"json_object": True}}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return {"structured_outputs": {"json": schema}}
    raise InvalidParamsError(
        "body.response_format must have the type text, json_object, or json_schema with a "
        f"json_schema.schema, got {shortened(response_format)}"
    )


def _with_one_length(params: dict[str, object]) -> dict[str, object]:
    length = params.pop("max_completion_tokens", None)
    if length is None:
        return params
    if params.setdefault("max_tokens", length) != length:
        raise InvalidParamsError(
            f"body.max_tokens ({params['max_tokens']}) and body.max_completion_tokens ({length}) "
            "differ; give one of them"
        )
    return params
