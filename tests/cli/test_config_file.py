from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke

SEE_RUN = " (see 'furiosa-llm run --help')\n"


def run_with(path: Path, text: str, *args: str, env: dict[str, str] | None = None) -> str:
    """Runs with a configuration file and returns what stands on standard error."""
    path.write_text(text, encoding="utf-8")
    return invoke("run", *REQUIRED, "--quiet", "--config", str(path), *args, env=env).stderr


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    batch: FakeBatch, tmp_path: Path
) -> None:
    path, text = tmp_path / "c.yaml", "max-tokens: 3\n"
    environment = {"FURIOSA_LLM_RUN_MAX_TOKENS": "2"}

    run_with(path, text, "--max-tokens", "1", env=environment)
    run_with(path, text, env=environment)
    run_with(path, text)
    run_with(path, "")

    assert [job.sampling_params.max_tokens for job in batch.jobs] == [1, 2, 3, 256]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "model: other\nmax_num_seqs: 8\nis-offline: no\nstop: [a, b]\n"),
        ("c.yml", "model: other\nrun:\n  max_num_seqs: 8\n  is-offline: False\n  stop: [a, b]\n"),
        ("c.toml", "model = 'other'\nmax-num-seqs = 8\nis_offline = false\nstop = ['a', 'b']\n"),
        (
            "c.toml",
            "max_num_seqs = 9\n[run]\nmax-num-seqs = 8\nis_offline = 0\nstop = ['a', 'b']\n",
        ),
    ],
)
def test_yaml_and_toml_give_the_same_options(
    batch: FakeBatch, tmp_path: Path, name: str, text: str
) -> None:
    assert run_with(tmp_path / name, text) == ""

    args = batch.job.engine_args
    assert (args.model, args.max_num_seqs, args.is_offline) == ("m", 8, False)
    assert batch.job.sampling_params.stop == ("a", "b")


def test_a_file_can_give_what_is_required(batch: FakeBatch, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ninput: in.jsonl\noutput: out.parquet\nstop: x\n", encoding="utf-8")

    outcome = invoke("run", "--config", str(path))

    assert outcome.exit_code == 0
    assert (batch.job.input, batch.job.sampling_params.stop) == ("in.jsonl", ("x",))


def test_the_section_of_another_command_is_left_alone(batch: FakeBatch, tmp_path: Path) -> None:
    assert run_with(tmp_path / "c.yaml", "bench:\n  max-tokens: 5\n") == ""

    assert batch.job.sampling_params.max_tokens == 256


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "max-tokns: 5\n", "unknown option 'max-tokns'; did you mean max-tokens or "),
        ("c.yaml", "benhc:\n  n: 1\n", "unknown option 'benhc'; did you mean bench?"),
        (
            "c.yaml",
            "max-tokens: 5\nmax_tokens: 6\n",
            "max-tokens and max_tokens are the same option; give one",
        ),
        (
            "c.toml",
            "[run]\ntop_k = 5\ntop-k = 6\n",
            "top_k and top-k are the same option; give one",
        ),
        ("c.yaml", "run:\n  zzz: 1\n", "unknown option 'zzz'"),
        ("c.yaml", "a: [1\n", "cannot be parsed: expected ',' or ']', but got '<stream end>' "),
        ("c.toml", "a = \n", "cannot be parsed: Invalid value (at line 1, column 5)"),
        ("c.json", "{}", "the name of a configuration file must end in .yaml, .yml or .toml"),
        ("c.yaml", "- model\n", "must hold names and values, one a line, but holds a list"),
        ("c.yaml", "run: 5\n", "run must hold names and values, got 5"),
        ("c.yaml", "seed:\n", "seed has no value; give it one or leave the line out"),
        ("c.yaml", "seed: [1]\n", "seed must be a single value, got [1]"),
        ("c.yaml", "stop: {a: b}\n", "stop must be a single value, got {'a': 'b'}"),
    ],
)
def test_a_bad_file_is_one_clear_line(
    batch: FakeBatch, tmp_path: Path, name: str, text: str, message: str
) -> None:
    stderr = run_with(tmp_path / name, text)

    assert stderr.startswith(f"Error: {tmp_path / name}: {message}")
    assert stderr.endswith(SEE_RUN)
    assert (stderr.count("\n"), batch.jobs) == (1, [])


def test_objects_may_be_written_as_such(batch: FakeBatch, tmp_path: Path) -> None:
    text = "logit-bias: {5: 1, 6: -2.5}\nstructured-outputs:\n  choice: [yes, 'no']\n"

    assert run_with(tmp_path / "c.yaml", text.replace("yes", "'yes'")) == ""

    params = batch.job.sampling_params
    assert params.logit_bias == {5: 1, 6: -2.5}
    assert params.structured_outputs is not None
    assert params.structured_outputs.choice == ("yes", "no")


def test_a_bad_value_in_a_file_is_the_same_error_as_on_the_command_line(
    batch: FakeBatch, tmp_path: Path
) -> None:
    stderr = run_with(tmp_path / "c.yaml", "seed: x\n")

    assert stderr == f"Error: Invalid value for '--seed': 'x' is not a whole number{SEE_RUN}"
    assert batch.jobs == []


def test_a_file_that_does_not_exist_is_refused() -> None:
    outcome = invoke("run", *REQUIRED, "--config", "nowhere.yaml")

    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"Error: Invalid value for '--config': File 'nowhere.yaml' does not exist.{SEE_RUN}"
    )
