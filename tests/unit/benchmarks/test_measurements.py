from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.checkpoints import SHAPES, make_config, make_tokenizer
from benchmarks.contenders import PEERS, ours
from benchmarks.drivers.furiosa import engine_args
from benchmarks.environments import ENVIRONMENTS, REQUIREMENTS, python_of
from benchmarks.measure_peers import COMPARISONS, choose, contenders
from benchmarks.memory import tree_memory_bytes
from benchmarks.processes import Machine
from furiosa_llm.errors import ConfigError
from tests.processes import wait_until


def test_settings_are_engine_options() -> None:
    args = engine_args("a model", ["data_parallel_size=2", "enable_prefix_caching=False"])

    assert (args.model, args.devices, args.is_offline) == ("a model", "cpu", True)
    assert args.data_parallel_size == 2
    assert not args.enable_prefix_caching


def test_a_setting_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs must be at least 1"):
        engine_args("a model", ["max_num_seqs=0"])


def test_our_settings_become_words_of_the_driver() -> None:
    contender = ours("int8", "data_parallel_size=2")

    assert contender.settings_for("mixed") == (
        *("--set", "data_parallel_size=2"),
        *("--set", "quantization=int8"),
    )


def test_every_comparison_names_contenders_that_exist() -> None:
    known = {*contenders(), "furiosa-int8", *(peer.key for peer in PEERS)}

    assert {key for comparison in COMPARISONS for key in comparison.engines} <= known


def test_contenders_are_chosen_by_how_their_keys_begin() -> None:
    known = {key: entry for key, entry in contenders().items() if not entry.features}

    chosen = choose(COMPARISONS[0].engines, ["openvino", "furiosa-float32"], known)

    assert [contender.key for contender in chosen] == [
        "furiosa-float32",
        "openvino-float32",
        "openvino-int8",
    ]


def test_every_peer_has_requirements_and_a_driver() -> None:
    drivers = REQUIREMENTS.parent / "drivers"

    for name in ENVIRONMENTS:
        assert (REQUIREMENTS / f"{name}.txt").read_text().strip()
        assert (drivers / f"{name}.py").is_file()


def test_a_peer_without_environment_has_no_interpreter(tmp_path: Path) -> None:
    assert python_of("openvino", tmp_path) is None


def test_the_last_object_that_a_process_prints_is_its_output() -> None:
    script = "print('words'); print('{\"seconds\": 2}'); print('more words')"

    finished = Machine(lock=None).run([sys.executable, "-c", script], variables={})

    assert finished.output == {"seconds": 2}
    assert finished.problem is None


def test_a_process_that_fails_says_why_in_its_last_line() -> None:
    finished = Machine(lock=None).run(
        [sys.executable, "-c", "raise SystemExit('the model is not there')"], variables={}
    )

    assert finished.problem == "the model is not there"


def test_a_process_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    machine = Machine(lock=None, time_limit_seconds=0.5)
    script = "import subprocess; subprocess.run(['sleep', '60'])"  # it holds the pipes open, too

    finished = machine.run([sys.executable, "-c", script], variables={})

    assert finished.problem == "it took more than 0.5 seconds"


def test_a_process_that_crashes_is_said_to_have_crashed() -> None:
    script = "import os, signal, sys; print('at work', file=sys.stderr, flush=True); "
    script += "os.kill(os.getpid(), signal.SIGSEGV)"

    finished = Machine(lock=None).run([sys.executable, "-c", script], variables={})

    assert finished.problem == "it crashed (SIGSEGV)"


def test_memory_of_a_process_counts_what_it_started() -> None:
    script = "data = bytearray(2**25); input()"
    before = tree_memory_bytes(os.getpid())

    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as child:
        wait_until(lambda: tree_memory_bytes(child.pid) > 2**25)
        after = tree_memory_bytes(os.getpid())
        child.communicate(b"\n")

    assert after - before > 2**24


def test_memory_of_a_process_that_has_ended_is_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()

    assert tree_memory_bytes(child.pid) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_about_as_many_parameters_as_its_name_says(shape: str) -> None:
    config = make_config(shape)
    layer = 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size**2

    millions = (config.num_hidden_layers * layer + config.vocab_size * config.hidden_size) / 1e6

    assert millions == pytest.approx(int(shape.split("-")[1][:-1]), rel=0.1)


def test_the_tokenizer_gives_text_back_and_fills_the_vocabulary() -> None:
    tokenizer = make_tokenizer()
    text = "Zwölf Boxkämpfer, 12 of them."

    assert len(tokenizer) == make_config(SHAPES[0]).vocab_size
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == make_config(SHAPES[0]).eos_token_id
