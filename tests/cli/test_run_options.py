from __future__ import annotations

from pathlib import Path

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.error_limit import ErrorLimit
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.structured_outputs import StructuredOutputs
from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke

SEE_RUN = " (see 'furiosa-llm run --help')\n"


def test_run_is_greedy_and_offline_unless_told_otherwise(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED)

    assert batch.job.engine_args == EngineArgs(model="m", is_offline=True)
    assert batch.job.sampling_params == SamplingParams(
        temperature=0, max_tokens=256, fits_context=True
    )


def test_only_a_default_number_of_tokens_gives_way_to_the_context(
    batch: FakeBatch, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("max-tokens: 256\n", encoding="utf-8")

    invoke("run", *REQUIRED)
    invoke("run", *REQUIRED, "--max-tokens", "256")
    invoke("run", *REQUIRED, env={"FURIOSA_LLM_RUN_MAX_TOKENS": "256"})
    invoke("run", *REQUIRED, "--config", str(file))

    params = [job.sampling_params for job in batch.jobs]
    assert [one.fits_context for one in params] == [True, False, False, False]
    assert not params[0].updated({"max_tokens": 256}).fits_context
    assert params[0].updated({"top_k": 5}).fits_context


def test_every_option_of_run_reaches_the_job(batch: FakeBatch) -> None:
    outcome = invoke(
        *("run", "-m", "m", "-i", "in.jsonl", "-o", "out/", "--overwrite"),
        *("--prompt-column", "question", "--params-column", "params"),
        *("--expected-column", "answer", "--step-stats", "steps.parquet", "--preview", "3"),
        *("--failed-rows", "bad.jsonl", "--row-timeout", "1.5m", "--max-errors", "2.5%"),
    )

    job = batch.job
    assert outcome.exit_code == 0
    assert (job.input, job.output, job.overwrite) == ("in.jsonl", "out/", True)
    assert job.columns == ColumnMapping(prompt_column="question", params_column="params")
    assert (job.expected_column, job.num_examples) == ("answer", 3)
    assert (job.step_stats, job.failed_rows) == (Path("steps.parquet"), Path("bad.jsonl"))
    assert job.row_timeout_seconds == 90
    assert job.max_errors == ErrorLimit(2.5, is_percent=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("False", False), ("1", True), ("0", False), ("yes", True), ("no", False)],
)
def test_is_offline_means_what_it_reads(batch: FakeBatch, text: str, value: bool) -> None:
    invoke("run", *REQUIRED, "--is-offline", text)

    assert batch.job.engine_args.is_offline is value


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("4k", 4000), ("4K", 4096)])
def test_sizes_have_units(batch: FakeBatch, text: str, value: int) -> None:
    invoke("run", *REQUIRED, "--max-num-batched-tokens", text, "--max-model-len", text)

    assert batch.job.engine_args.max_num_batched_tokens == value
    assert batch.job.engine_args.max_model_len == value


def test_flags_have_an_opposite(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED, "--no-enable-prefix-caching", "--trust-remote-code")

    assert batch.job.engine_args.enable_prefix_caching is False
    assert batch.job.engine_args.trust_remote_code is True


def test_options_that_may_be_repeated_are_collected(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED, "--stop", "a", "--stop", "b c", "--stop-token-ids", "7")

    assert batch.job.sampling_params.stop == ("a", "b c")
    assert batch.job.sampling_params.stop_token_ids == (7,)


def test_biases_and_forms_are_read_from_text(batch: FakeBatch, tmp_path: Path) -> None:
    file = tmp_path / "form.json"
    file.write_text('{"json": {"type": "object"}}', encoding="utf-8")

    invoke("run", *REQUIRED, "--logit-bias", "42=-100", "--logit-bias", "7=0.5", "--logprobs", "3")
    invoke("run", *REQUIRED, "--structured-outputs", '{"choice": ["yes", "no"]}')
    invoke("run", *REQUIRED, "--structured-outputs", f"@{file}")
    invoke("run", *REQUIRED, "--temperature", "0.8", "--best-of", "5")

    biased, choice, schema, best = [job.sampling_params for job in batch.jobs]
    assert (biased.logit_bias, biased.logprobs) == ({7: 0.5, 42: -100.0}, 3)
    assert choice.structured_outputs == StructuredOutputs(choice=("yes", "no"))
    assert schema.structured_outputs == StructuredOutputs(json={"type": "object"})
    assert (best.n, best.best_of, best.logit_bias) == (1, 5, None)


def test_max_tokens_may_be_none(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED, "--max-tokens", "none")

    assert batch.job.sampling_params.max_tokens is None


def test_a_template_may_be_a_text_or_a_file(batch: FakeBatch, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("Q: {{ question }}\n", encoding="utf-8")

    invoke("run", *REQUIRED, "--template", "{{ question }}")
    invoke("run", *REQUIRED, "--template", f"@{file}")

    assert [job.columns.template for job in batch.jobs] == ["{{ question }}", "Q: {{ question }}\n"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--max-errors", "101%"],
            "Invalid value for '--max-errors': '101%' is no limit; write a number of rows, or a "
            "share such as 5%",
        ),
        (
            ["--row-timeout", "soon"],
            "Invalid value for '--row-timeout': 'soon' is not a time; write for example 30s, 5m "
            "or 2h",
        ),
        (
            ["--row-timeout", "0"],
            "Invalid value for '--row-timeout': '0' must be more than 0; leave it out for no limit",
        ),
        (
            ["--max-num-seqs", "4q"],
            "Invalid value for '--max-num-seqs': '4q' is not a size; write for example 4096, 4k, "
            "4K or 2GiB",
        ),
        (["--seed", "1.5"], "Invalid value for '--seed': '1.5' is not a whole number"),
        (["--top-p", "half"], "Invalid value for '--top-p': 'half' is not a number"),
        (
            ["--spare-blocks-ratio", "much"],
            "Invalid value for '--spare-blocks-ratio': 'much' is not a number",
        ),
        (
            ["--is-offline", "maybe"],
            "Invalid value for '--is-offline': 'maybe' is not a truth value; use True or False",
        ),
        (
            ["--dtype", "int4"],
            "Invalid value for '--dtype': 'int4' is not one of 'auto', 'float32', 'bfloat16', "
            "'float16'.",
        ),
        (
            ["--logit-bias", "42"],
            "Invalid value for '--logit-bias': '42' is not a token and its bias; write for example "
            "42=-100",
        ),
        (
            ["--logit-bias", "42=200"],
            "Invalid value for '--logit-bias': logit_bias must be in [-100, 100], got 200.0",
        ),
        (
            ["--structured-outputs", "{"],
            "Invalid value for '--structured-outputs': '{' is not JSON: ",
        ),
        (
            ["--structured-outputs", "@nowhere"],
            "Invalid value for '--structured-outputs': nowhere: cannot be read: ",
        ),
        (
            ["--best-of", "3"],
            "best_of must be 1 when using greedy sampling, got 3: all answers would be the same; "
            "raise temperature",
        ),
        (["--temperature", "-1"], "temperature must be in [0, 1000000], got -1.0"),
        (["--template", "@nowhere"], "Invalid value for '--template': nowhere: cannot be read: "),
        (["--quiet", "-v"], "--quiet and --verbose exclude each other; give one of them"),
        (["--modle", "m"], "No such option '--modle'."),
    ],
)
def test_a_bad_value_is_one_clear_line(batch: FakeBatch, args: list[str], message: str) -> None:
    outcome = invoke("run", *REQUIRED, *args)

    assert (outcome.exit_code, outcome.stdout, batch.jobs) == (2, "", [])
    assert outcome.stderr.startswith(f"Error: {message}")
    assert outcome.stderr.endswith(SEE_RUN)
    assert outcome.stderr.count("\n") == 1


def test_options_that_do_not_go_together_are_one_clear_line(batch: FakeBatch) -> None:
    sizes = ("--max-num-batched-tokens", "64", "--max-num-seqs", "256")

    outcome = invoke("run", *REQUIRED, *sizes)

    assert (outcome.exit_code, batch.jobs) == (2, [])
    assert outcome.stderr == (
        "Error: max_num_batched_tokens (64) must be at least max_num_seqs (256), so that every "
        "running request can have one token in a step\n"
    )


def test_an_unknown_option_or_command_suggests_the_closest() -> None:
    assert "'--model'" in invoke("run", "--modle", "m").stderr
    assert "'run'" in invoke("rnu").stderr


def test_a_missing_option_is_named() -> None:
    outcome = invoke("run", "-m", "m", "-o", "out.parquet")

    assert outcome.exit_code == 2
    assert outcome.stderr == f"Error: Missing option '-i' / '--input'.{SEE_RUN}"


def test_a_variable_that_is_no_option_is_told_with_what_may_be_meant(batch: FakeBatch) -> None:
    environment = {
        "FURIOSA_LLM_RUN_MAXTOKENS": "5",
        "FURIOSA_LLM_RUN_TOP_K": "7",
        "FURIOSA_LLM_BENCH_NUM_PROMPTS": "7",
        "FURIOSA_LLM_DEBUG": "0",
    }

    told = invoke("run", *REQUIRED, env=environment).stderr.splitlines()
    quiet = invoke("run", *REQUIRED, "--quiet", env=environment)
    missing = invoke("run", "-q", "-i", "x", "-o", "y", env={"FURIOSA_LLM_RUN_MODLE": "m"})

    assert [line for line in told if "variable" in line] == [
        "warning: the variable FURIOSA_LLM_RUN_MAXTOKENS is no option and has no effect; "
        "did you mean FURIOSA_LLM_RUN_MAX_TOKENS?"
    ]
    assert (quiet.exit_code, quiet.stderr, len(batch.jobs)) == (0, "", 2)
    assert "did you mean FURIOSA_LLM_RUN_MODEL?" in missing.stderr.splitlines()[0]


def test_a_variable_that_is_no_option_is_told_once() -> None:
    told = invoke("bench", "-i", "x", "--input-len", "5", env={"FURIOSA_LLM_RUN_MODLE": "m"})

    assert told.exit_code == 2
    assert told.stderr.count("FURIOSA_LLM_RUN_MODLE is no option") == 1


def test_an_empty_model_is_refused(batch: FakeBatch) -> None:
    outcome = invoke("run", "-m", "", "-i", "in.jsonl", "-o", "out.parquet")

    assert (outcome.exit_code, batch.jobs) == (2, [])
    assert outcome.stderr.startswith("Error: --model is empty; ")


def test_an_input_that_is_given_twice_is_refused(batch: FakeBatch) -> None:
    outcome = invoke("run", *REQUIRED, "-i", "other.jsonl")

    assert (outcome.exit_code, batch.jobs) == (2, [])
    assert outcome.stderr.startswith("Error: --input is given 2 times, and takes one; ")


def test_of_other_options_the_last_one_counts(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED, "--seed", "1", "--seed", "2")

    assert batch.job.engine_args.seed == 2


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("--overwrite", "--overwrite", "-v", "-v"), {}),
        (("--enable-prefix-caching", "--no-enable-prefix-caching"), {}),
        (("--stop", "a", "--stop", "a"), {}),
        ((), {"FURIOSA_LLM_RUN_INPUT": "other.jsonl"}),
    ],
)
def test_what_may_be_given_twice_may(
    args: tuple[str, ...], env: dict[str, str], batch: FakeBatch
) -> None:
    outcome = invoke("run", *REQUIRED, *args, env=env)

    assert outcome.exit_code == 0, outcome.stderr
    assert batch.job.input == "in.jsonl"


@pytest.mark.parametrize(
    ("value", "stop"),
    [
        ("The end", ("The end",)),
        (" ", (" ",)),
        ('["\\n\\n", "The end"]', ("\n\n", "The end")),
        ("[END]", ("[END]",)),
        ("[1]", ("[1]",)),
        ('"', ('"',)),
    ],
)
def test_a_variable_is_one_stop_string_or_a_list(
    value: str, stop: tuple[str, ...], batch: FakeBatch
) -> None:
    env = {"FURIOSA_LLM_RUN_STOP": value, "FURIOSA_LLM_RUN_STOP_TOKEN_IDS": "7 8"}
    outcome = invoke("run", *REQUIRED, env=env)

    assert outcome.exit_code == 0, outcome.stderr
    assert batch.job.sampling_params.stop == stop
    assert batch.job.sampling_params.stop_token_ids == (7, 8)
