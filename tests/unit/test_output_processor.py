from __future__ import annotations

from typing import cast

import pytest

from furiosa_llm.output_processor import OutputProcessor
from furiosa_llm.tokenization import Tokenizer
from tests.factories import make_request


def test_a_prompt_never_takes_the_place_of_another() -> None:
    processor = OutputProcessor(cast(Tokenizer, None))
    processor.add(None, [make_request(0)])

    with pytest.raises(AssertionError, match="is unfinished"):
        processor.add(None, [make_request(1)])
