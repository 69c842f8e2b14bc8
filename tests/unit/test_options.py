from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.options import (
    add_arguments,
    option,
    options_of,
    parse_bool,
    parse_optional,
    parse_size,
)
from furiosa_llm.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Oven:
    model: str = option("Which one.", metavar="NAME")
    degrees: int = option("How hot.", parse=parse_size, default=200)
    is_clean: bool = option("Whether it is.", parse=parse_bool, default=True)
    fan: bool = option("Turn the fan.", default=False, is_flag=True)
    serial_number: int = 7  # no option


@pytest.mark.parametrize("text", ["True", "true", " 1 ", "yes", "ON"])
def test_words_that_are_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["False", "FALSE", "0", "no", "off"])
def test_words_that_are_false(text: str) -> None:
    assert parse_bool(text) is False


def test_another_word_is_not_a_truth_value() -> None:
    with pytest.raises(ValueError, match="'maybe' is not a truth value; use True or False"):
        parse_bool("maybe")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("2GiB", 2 * 2**30),
        ("2 GB", 2 * 10**9),
        ("1.5m", 1_500_000),
    ],
)
def test_a_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.2.3", "4kib", "1e6", "0.1k5"])
def test_anything_else_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example"):
        parse_size(text)


def test_a_size_is_whole_once_its_unit_is_applied() -> None:
    with pytest.raises(ValueError, match=r"'1\.5' is not a whole number"):
        parse_size("1.5")


def test_none_leaves_the_choice_to_the_program() -> None:
    parse = parse_optional(parse_size)

    assert (parse("None"), parse("none"), parse("4k")) == (None, None, 4000)


def test_only_fields_with_a_help_text_are_options() -> None:
    flags = {entry.flag: entry.default for entry in options_of(Oven)}

    assert flags == {"--model": None, "--degrees": 200, "--is-clean": True, "--fan": False}
    assert [entry.name for entry in options_of(Oven) if entry.required] == ["model"]


def test_argparse_gets_the_same_options() -> None:
    parser = add_arguments(Oven, argparse.ArgumentParser())

    args = parser.parse_args(["--model", "m", "--degrees", "4k", "--is-clean", "no", "--fan"])

    assert vars(args) == {"model": "m", "degrees": 4000, "is_clean": False, "fan": True}


def test_argparse_shows_the_parsers_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    parser = add_arguments(Oven, argparse.ArgumentParser())

    with pytest.raises(SystemExit):
        parser.parse_args(["--model", "m", "--is-clean", "maybe"])

    assert "'maybe' is not a truth value; use True or False" in capsys.readouterr().err


@pytest.mark.parametrize("owner", [EngineArgs, SamplingParams])
def test_every_default_can_be_written_on_the_command_line(owner: type) -> None:
    for entry in options_of(owner):
        if not (entry.required or entry.multiple or entry.is_flag):
            if entry.default is not None:
                assert entry.parse(str(entry.default)) == entry.default, entry.name
            assert entry.help.endswith("."), entry.name
