from __future__ import annotations

import pickle

import pytest

from furiosa_llm import errors
from furiosa_llm.errors import FuriosaLLMError, NeverFitsError, PromptTooLongError

EXAMPLES = [
    NeverFitsError.of_tokens(num_tokens=65, num_needed_blocks=5, num_blocks=4),
    PromptTooLongError.of_tokens(num_prompt_tokens=9, max_tokens=8, max_model_len=16),
    PromptTooLongError.of_bytes(num_bytes=90, num_tokens=30, max_model_len=16),
    *(
        kind("what went wrong")
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, FuriosaLLMError)
    ),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_goes_through_a_pipe_as_it_is(error: FuriosaLLMError) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
