"""How much arithmetic a workload asks for, so that speed can be stated as a share of the machine's.

It counts matrix products with weights, and leaves attention itself out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.workloads import WorkloadRow, common_length


def workload_flops(config: Mapping[str, int], rows: Sequence[WorkloadRow]) -> int:
    """Returns the floating-point operations that the answers need at least.

    Each token runs once, but for the last of an answer, which nothing follows. Prompt tokens that
    stand after the same tokens in several rows are counted once, whether an engine shares them or
    not. Only tokens that are chosen need the head.

    Args:
        config: Of a Llama checkpoint, as in its `config.json`.
        rows: The workload.
    """
    num_sampled = sum(row.max_tokens for row in rows)
    num_prompt_tokens = num_distinct_tokens(row.prompt_token_ids for row in rows)
    num_tokens = num_prompt_tokens + num_sampled - len(rows)
    head = config["vocab_size"] * config["hidden_size"]
    return 2 * num_layer_weights(config) * num_tokens + 2 * head * num_sampled


def num_layer_weights(config: Mapping[str, int]) -> int:
    """Returns how many weights the layers' matrices have."""
    hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden_size // num_heads
    query_size = num_heads * head_size
    key_value_size = 2 * config["num_key_value_heads"] * head_size
    attention = hidden_size * (query_size + key_value_size) + query_size * hidden_size
    mlp = 3 * hidden_size * config["intermediate_size"]
    return config["num_hidden_layers"] * (attention + mlp)


def num_distinct_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Returns how many tokens there are if those that prompts start alike with count once."""
    total, before = 0, list[int]()
    for prompt in sorted(map(list, prompts)):  # neighbours share most
        total += len(prompt) - common_length(before, prompt)
        before = prompt
    return total
