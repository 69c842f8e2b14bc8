from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.flops import num_distinct_tokens, num_layer_weights, workload_flops
from benchmarks.workloads import WorkloadRow

SIZES = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_row(prompt_token_ids: list[int], max_tokens: int) -> WorkloadRow:
    return WorkloadRow(prompt_token_ids=prompt_token_ids, max_tokens=max_tokens)


def test_the_weights_of_the_layers_are_those_of_the_model() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]

    assert num_layer_weights(SIZES) == sum(weight.numel() for weight in matrices)


def test_heads_may_be_wider_than_the_model() -> None:
    sizes = {**SIZES, "head_dim": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]

    assert num_layer_weights(sizes) == sum(weight.numel() for weight in matrices)


def test_every_token_runs_but_the_last_of_an_answer() -> None:
    one = workload_flops(SIZES, [make_row([1, 2, 3], 1)])
    two = workload_flops(SIZES, [make_row([1, 2, 3], 2)])

    head = 2 * 100 * 24
    assert one == 2 * num_layer_weights(SIZES) * 3 + head
    assert two - one == 2 * num_layer_weights(SIZES) + head


def test_tokens_that_prompts_share_count_once() -> None:
    prompts = [[1, 2, 3, 4], [5, 6], [1, 2, 9], [1, 2, 3]]

    assert num_distinct_tokens(prompts) == 4 + 2 + 1
    assert num_distinct_tokens([]) == 0


def test_equal_tokens_after_different_ones_count_again() -> None:
    assert num_distinct_tokens([[1, 2, 3], [9, 2, 3]]) == 6
