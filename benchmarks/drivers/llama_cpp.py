"""Times llama.cpp on a GGUF file, through the library that llama-cpp-python brings.

    python -m benchmarks.drivers.llama_cpp MODEL.gguf WORKLOAD.jsonl

llama.cpp decodes batches that hold tokens of many sequences, and leaves it to the caller to fill
them: its server does so, and is not in the package.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import llama_cpp
import numpy as np

from benchmarks.drivers.common import Answers, measure, read_task
from benchmarks.workloads import WorkloadRow, common_length


@dataclass(slots=True, kw_only=True)
class Slot:
    """A sequence of the KV cache, and the row that it holds.

    Attributes:
        index: Of the row.
        row: What is to be answered.
        num_computed_tokens: Leading tokens whose keys and values are in the cache.
        answer: The tokens so far.
    """

    index: int
    row: WorkloadRow
    num_computed_tokens: int = 0
    answer: list[int] = field(default_factory=list)

    def tokens(self, limit: int) -> list[int]:
        """Returns the tokens to compute next: the rest of the prompt, or the last one chosen."""
        start = self.num_computed_tokens
        if start < len(self.row.prompt_token_ids):
            return self.row.prompt_token_ids[start : start + limit]
        return self.answer[-1:]


class Context:
    """A loaded model with a KV cache for several sequences."""

    def __init__(self, model_path: str, args: argparse.Namespace, max_len: int) -> None:
        """Loads the model.

        Args:
            model_path: A GGUF file.
            args: The driver's options.
            max_len: Longest prompt and answer.
        """
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model_path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = args.parallel * -(-max_len // 256) * 256
        params.n_batch = args.batch_tokens
        params.n_ubatch = args.ubatch_tokens
        params.n_seq_max = args.parallel
        params.n_threads = params.n_threads_batch = args.threads
        params.kv_unified = args.kv_unified
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {model_path}")
        self.memory = llama_cpp.llama_get_memory(self.context)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(args.batch_tokens, 0, 1)

    def decode(self, work: Sequence[tuple[int, int, list[int]]]) -> list[int]:
        """Computes tokens and chooses the likeliest after the last one of each sequence.

        Args:
            work: Sequence, position of the first token, tokens.

        Returns:
            The token chosen for each sequence.
        """
        batch, place, last_places = self._batch, 0, []
        for sequence, position, token_ids in work:
            for offset, token_id in enumerate(token_ids):
                batch.token[place] = token_id
                batch.pos[place] = position + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = offset == len(token_ids) - 1
                place += 1
            last_places.append(place - 1)
        batch.n_tokens = place
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")
        return [self._likeliest(place) for place in last_places]

    def copy(self, source: int, target: int, num_tokens: int = -1) -> None:
        """Gives a sequence what another has in the cache, or the first tokens of it."""
        self.forget(target)
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        if num_tokens >= 0:
            llama_cpp.llama_memory_seq_rm(self.memory, target, num_tokens, -1)

    def forget(self, sequence: int) -> None:
        """Frees what a sequence has in the cache."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def _likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.argmax(np.ctypeslib.as_array(address, (self.vocab_size,))))


def answer_all(
    context: Context, rows: Sequence[WorkloadRow], *, args: argparse.Namespace
) -> Answers:
    """Answers rows with as many of them at once as there are sequences.

    Prompts are computed apart from running answers, and running sequences have no gap between
    them: llama.cpp computes tokens together where neighbouring sequences have equally many.
    """
    waiting = list(enumerate(rows))[::-1]
    running: list[Slot] = []  # the i-th is sequence i
    answers: Answers = [[] for _ in rows]
    while waiting or running:
        while waiting and len(running) < args.parallel:
            index, row = waiting.pop()
            running.append(Slot(index=index, row=row))
        _compute_prompts(context, running, args)
        _advance(context, running, range(len(running)), args.batch_tokens)
        for sequence in reversed(range(len(running))):
            slot = running[sequence]
            if len(slot.answer) == slot.row.max_tokens:
                answers[slot.index] = slot.answer
                last = running.pop()
                if last is not slot:
                    context.copy(len(running), sequence)
                    running[sequence] = last
                context.forget(len(running))
    return answers


def _compute_prompts(context: Context, running: list[Slot], args: argparse.Namespace) -> None:
    """Computes the prompts of new sequences, those of the same length together."""
    for sequence, slot in enumerate(running):
        if slot.num_computed_tokens == 0 and args.prefix_caching:
            _take_prefix(context, sequence, running, args)
    new = [sequence for sequence, slot in enumerate(running) if not slot.answer]
    while new:
        lengths = [len(running[sequence].tokens(args.batch_tokens)) for sequence in new]
        num_alike = next((i for i, n in enumerate(lengths) if n != lengths[0]), len(new))
        num_together = min(num_alike, max(1, args.batch_tokens // lengths[0]))
        _advance(context, running, new[:num_together], args.batch_tokens)
        new = [sequence for sequence in new if not running[sequence].answer]


def _advance(
    context: Context, running: list[Slot], sequences: Iterable[int], max_tokens: int
) -> None:
    """Computes the next tokens of sequences whose answers are not complete."""
    work = [
        (sequence, running[sequence].num_computed_tokens, running[sequence].tokens(max_tokens))
        for sequence in sequences
        if len(running[sequence].answer) < running[sequence].row.max_tokens
    ]
    if not work:
        return
    for (sequence, _, token_ids), token in zip(work, context.decode(work), strict=True):
        slot = running[sequence]
        slot.num_computed_tokens += len(token_ids)
        if slot.num_computed_tokens >= len(slot.row.prompt_token_ids):
            slot.answer.append(token)


def _take_prefix(
    context: Context, sequence: int, running: list[Slot], args: argparse.Namespace
) -> None:
    """Copies the longest prefix that a sequence before this one has, once it is computed."""
    slot = running[sequence]
    prompt = slot.row.prompt_token_ids
    lengths = [common_length(prompt, other.row.prompt_token_ids) for other in running[:sequence]]
    length = min(max(lengths, default=0), len(prompt) - 1)
    if length == 0:
        return
    source = lengths.index(max(lengths))
    while running[source].num_computed_tokens < length:
        _advance(context, running, [source], args.batch_tokens)
    context.copy(source, sequence, length)
    slot.num_computed_tokens = length


def main() -> None:
    """Loads the model and answers the workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parallel", type=int, default=64, help="sequences at once")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--ubatch-tokens", type=int, default=512, help="computed at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-unified", action="store_true", help="one cache for all sequences")
    parser.add_argument("--prefix-caching", action="store_true", help="copy prefixes")
    task = read_task(parser)
    max_len = max(len(row.prompt_token_ids) + row.max_tokens for row in task.rows)
    context = Context(task.model, task.args, max_len)

    def generate(rows: Sequence[WorkloadRow]) -> Answers:
        return answer_all(context, rows, args=task.args)

    measure(task, generate, packages=["llama-cpp-python"])


if __name__ == "__main__":
    main()
