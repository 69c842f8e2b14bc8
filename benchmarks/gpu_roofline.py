"""The least time that steps can take on a device (the roofline of Williams et al., 2009)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.flops import num_layer_weights
from benchmarks.gpu_limits import Limits
from furiosa_llm.outputs import StepStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What a Llama or Qwen3 model asks for.

    Attributes:
        layer_weights: Numbers in the matrices of all layers.
        head_weights: Numbers in the output embedding.
        kv_numbers: Keys and values of one token in all layers.
        attention_flops: Operations for one query and one key in all layers.
        weight_bytes: Of one number of the layers' matrices.
        item_bytes: Of one number elsewhere.
    """

    layer_weights: int
    head_weights: int
    kv_numbers: int
    attention_flops: int
    weight_bytes: float = 2
    item_bytes: int = 2

    @classmethod
    def of(cls, config: Mapping[str, int], *, weight_bytes: float = 2) -> ModelCost:
        """Takes a checkpoint's `config.json`."""
        num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
        head_size = config.get("head_dim") or config["hidden_size"] // num_heads
        return cls(
            layer_weights=num_layer_weights(config),
            head_weights=config["vocab_size"] * config["hidden_size"],
            kv_numbers=2 * num_layers * config["num_key_value_heads"] * head_size,
            attention_flops=4 * num_layers * num_heads * head_size,
            weight_bytes=weight_bytes,
        )

    def step_bytes(self, *, num_cached_tokens: int) -> float:
        """Returns what a step reads: all weights once, keys and values of all tokens."""
        weights = self.layer_weights * self.weight_bytes + self.head_weights * self.item_bytes
        return weights + self.kv_numbers * num_cached_tokens * self.item_bytes

    def step_flops(self, *, num_tokens: int, num_logits: int, num_pairs: int) -> int:
        """Returns the operations of a step.

        Args:
            num_tokens: Tokens to compute.
            num_logits: Those of them whose logits are asked for.
            num_pairs: Queries times the keys that each sees, in all requests.
        """
        products = 2 * (self.layer_weights * num_tokens + self.head_weights * num_logits)
        return products + self.attention_flops * num_pairs

    def least_seconds(
        self, limits: Limits, *, num_tokens: int, num_logits: int, num_cached_tokens: int
    ) -> float:
        """Returns the least time of a step, attention's own operations left out."""
        num_bytes = self.step_bytes(num_cached_tokens=num_cached_tokens)
        flops = self.step_flops(num_tokens=num_tokens, num_logits=num_logits, num_pairs=0)
        return max(num_bytes / limits.copy_bytes_per_second, flops / limits.matrix_flops_per_second)


def least_seconds_of_steps(
    cost: ModelCost, limits: Limits, steps: Iterable[StepStats], *, block_size: int
) -> float:
    """Returns the least time of the steps that an engine booked.

    Blocks in use count as full, so that each request's last one counts half a block too much.
    """
    return sum(
        cost.least_seconds(
            limits,
            num_tokens=step.num_prefill_tokens
            + step.num_decode_tokens
            + step.num_recomputed_tokens,
            num_logits=step.num_sampled_tokens,
            num_cached_tokens=step.num_used_blocks * block_size,
        )
        for step in steps
    )
