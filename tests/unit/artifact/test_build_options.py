from __future__ import annotations

from typing import Any

import pytest

from furiosa_llm.artifact.contents import Bucket
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.errors import ConfigError


def buckets(*texts: str) -> tuple[Bucket, ...]:
    return tuple(Bucket.parse(text) for text in texts)


@pytest.mark.parametrize("text", ["", "4", "4,", ",4", "4,8,9", "a,b", "4x8"])
def test_anything_but_two_numbers_is_no_bucket(text: str) -> None:
    with pytest.raises(ValueError, match="is not a bucket; write BATCH,LEN, for example 4,256"):
        Bucket.parse(text)


def test_buckets_decide_the_sizes_of_a_step() -> None:
    runtime = BuildOptions(
        prefill_buckets=buckets("4,512", "1,256", "4,512"),
        decode_buckets=buckets("64,128", "8,999"),
    ).runtime_config()

    assert runtime.prefill_buckets == (Bucket(1, 256), Bucket(4, 512))
    assert runtime.prefill_chunk_size == 512
    assert runtime.max_num_seqs == 64
    assert runtime.max_num_batched_tokens == 2048


def test_small_buckets_leave_the_usual_number_of_tokens_to_a_step() -> None:
    runtime = BuildOptions(
        prefill_buckets=buckets("1,256"), decode_buckets=buckets("8,512")
    ).runtime_config()

    assert runtime.max_num_batched_tokens is None


def test_more_running_requests_than_tokens_raise_the_tokens() -> None:
    runtime = BuildOptions(decode_buckets=buckets("2000,64")).runtime_config()

    assert (runtime.max_num_seqs, runtime.max_num_batched_tokens) == (2000, 2000)


def test_a_chunk_size_that_is_given_wins_over_the_buckets() -> None:
    options = BuildOptions(prefill_buckets=buckets("1,256"), prefill_chunk_size=64)

    assert options.runtime_config().prefill_chunk_size == 64


def test_nothing_given_leaves_everything_to_the_engine() -> None:
    runtime = BuildOptions().runtime_config()

    assert runtime == type(runtime)()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_artifact_path": "q"}, r"quantization_artifact_path \(q\) cannot be used: "),
        ({"auto_bfloat16_cast": True, "dtype": "float32"}, "exclude each other; give one of them"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"max_processing_samples": 0}, "max_processing_samples must be at least 1, got 0"),
        ({"spare_blocks_ratio": 1.0}, r"spare_blocks_ratio must be in \[0, 1\), got 1.0"),
        (
            {"decode_buckets": buckets("4,513"), "max_seq_len_to_capture": 512},
            r"the decode bucket 4,513 is longer than max_seq_len_to_capture \(512\); shorten",
        ),
        (
            {"prefill_buckets": buckets("4,513"), "max_seq_len_to_capture": 512},
            "the prefill bucket 4,513 is longer than",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**values)


def test_the_bfloat16_cast_is_a_dtype() -> None:
    assert BuildOptions(auto_bfloat16_cast=True).target_dtype == "bfloat16"
    assert BuildOptions(dtype="float16").runtime_config().dtype == "float16"
