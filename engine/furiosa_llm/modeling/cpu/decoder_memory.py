"""Where the decoder layers of a model keep what their threads compute for each other."""

from __future__ import annotations

from typing import NamedTuple

from furiosa_llm.modeling.cpu import aligned
from furiosa_llm.modeling.cpu.attention_memory import attention_memory
from furiosa_llm.modeling.cpu.barrier import new_counter
from furiosa_llm.modeling.cpu.decoder_data import DecoderMemory, DecoderWeights
from furiosa_llm.modeling.cpu.decoder_kernel import scratch_rows
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.cpu.products import rows_for


class DecoderSizes(NamedTuple):
    """Elements of a token, and its query heads."""

    hidden: int
    attended: int
    projected: int
    gated: int
    num_heads: int


class SharedMemory:
    """What layers that run one after the other keep their intermediate results in."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], tuple[int, DecoderMemory]] = {}

    def for_step(
        self,
        weights: DecoderWeights,
        sizes: DecoderSizes,
        cache: LayerCache,
        *,
        num_tokens: int,
        num_threads: int,
    ) -> DecoderMemory:
        """Returns memory for so many tokens, the same to all layers of a precision and sizes."""
        key = type(weights.qkv), sizes, cache.kind, num_threads
        most_tokens, memory = self._kept.get(key, (0, None))
        if memory is None or num_tokens > most_tokens:
            self._kept.pop(key, None)
            del memory  # before there is more of it
            memory = _reserve(weights, sizes, cache, num_tokens, num_threads)
            self._kept[key] = num_tokens, memory
        return memory


def _reserve(
    weights: DecoderWeights,
    sizes: DecoderSizes,
    cache: LayerCache,
    num_tokens: int,
    num_threads: int,
) -> DecoderMemory:
    num_rows = scratch_rows(num_tokens, num_threads)
    return DecoderMemory(
        projected=aligned.empty([num_tokens * sizes.projected]),
        attended=aligned.empty([num_tokens * sizes.attended]),
        rows=rows_for(weights.qkv, num_rows, max(sizes.hidden, sizes.attended, sizes.gated)),
        gates=aligned.empty([num_rows * 2 * sizes.gated]),
        changes=aligned.empty([num_rows * sizes.hidden]),
        counter=new_counter(),
        attention=attention_memory(cache, sizes.num_heads, num_threads),
    )
