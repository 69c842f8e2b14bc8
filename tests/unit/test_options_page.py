from __future__ import annotations

from docs.make_options_page import PAGE, render


def test_the_page_of_options_says_what_help_says() -> None:
    assert PAGE.read_text() == render()


def test_the_page_names_no_folder_of_the_machine_it_was_made_on() -> None:
    assert "[default: ~/.cache/furiosa/llm]" in render()
