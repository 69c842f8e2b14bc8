"""Shows what is known of a run before it begins."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from furiosa_llm.device_mesh import counted
from furiosa_llm_cli.formats import count, duration, part_of, rate, share
from furiosa_llm_cli.summary import Fact, example_error, plain_facts

if TYPE_CHECKING:
    from furiosa_llm.batch.plan import BatchPlan

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def plan_text(plan: BatchPlan, *, import_seconds: float) -> str:
    """Returns everything as lines."""
    facts = [("rows", count(plan.num_rows))]
    if plan.num_failed:
        facts.append(("not answered", part_of(plan.num_failed, plan.num_rows)))
        for code, number in plan.error_counts.items():
            first = plan.first_errors[code]
            facts.append((code, f"{count(number)}; {example_error(first.row_index, first.error)}"))
    if plan.num_ready:
        facts += _token_facts(plan)
    facts += _engine_facts(plan, import_seconds)
    if plan.num_ready:
        facts.append(("time", _time(plan)))
    return plain_facts(facts)


def plan_json(plan: BatchPlan, *, import_seconds: float) -> dict[str, object]:
    """Returns everything as JSON can hold it."""
    limits = plan.limits
    return {
        "num_rows": plan.num_rows,
        "num_failed": plan.num_failed,
        "error_counts": dict(plan.error_counts),
        "first_errors": {
            code: dataclasses.asdict(error) for code, error in plan.first_errors.items()
        },
        "num_prompt_tokens": plan.num_prompt_tokens,
        "prompt_lengths": {name: plan.prompt_length_at(share) for name, share in _SHARES.items()},
        "num_shared_tokens": plan.num_shared_tokens,
        "max_output_tokens": plan.max_output_tokens,
        "max_blocks": plan.max_blocks,
        "num_at_once": plan.num_at_once,
        "placement": plan.placement,
        "num_replicas": plan.num_replicas,
        "num_blocks": limits.cache_config.num_blocks,
        "block_size": limits.cache_config.block_size,
        "max_model_len": limits.model_info.max_model_len,
        "import_seconds": import_seconds,
        "startup_seconds": plan.startup_seconds,
        "sample": None if plan.sample is None else dataclasses.asdict(plan.sample),
        "estimated_seconds": plan.estimated_seconds,
    }


def _token_facts(plan: BatchPlan) -> list[Fact]:
    lengths = {name: plan.prompt_length_at(share) for name, share in _SHARES.items()}
    mean = plan.num_prompt_tokens / plan.num_ready
    shared = share(plan.num_shared_tokens, plan.num_prompt_tokens)
    facts = [
        (
            "tokens in",
            f"{count(plan.num_prompt_tokens)}; of a prompt {rate(mean)} in the mean, "
            f"P50 {count(lengths['p50'])}, P90 {count(lengths['p90'])}, "
            f"P99 {count(lengths['p99'])}, at most {count(lengths['max'])}",
        ),
        (
            "shared",
            f"{count(plan.num_shared_tokens)} of them ({shared}) begin an earlier prompt, too: the "
            "prefix cache may spare them",
        ),
    ]
    most = f"{count(plan.max_output_tokens)} at most"
    if plan.sample is not None:
        mean_out = plan.sample.num_output_tokens / plan.sample.num_rows
        about = count(round(mean_out * plan.num_ready))
        most = f"about {about}, {rate(mean_out)} of a row as of those answered; {most}"
    return [*facts, ("tokens out", most)]


def _engine_facts(plan: BatchPlan, import_seconds: float) -> list[Fact]:
    cache = plan.limits.cache_config
    blocks = f"{count(cache.num_blocks)} blocks of {cache.block_size} tokens"
    if plan.num_replicas > 1:
        blocks += " in each replica"
    if plan.num_ready:
        blocks += (
            f"; the longest row takes up to {count(plan.max_blocks)}, "
            f"{counted(plan.num_at_once, 'row')} of mean size run at once"
        )
    return [
        ("context", f"{count(plan.limits.model_info.max_model_len)} tokens"),
        ("engine", plan.placement),
        ("KV cache", blocks),
        (
            "start-up",
            f"{duration(import_seconds + plan.startup_seconds)} "
            f"(libraries {duration(import_seconds)}, model {duration(plan.startup_seconds)})",
        ),
    ]


def _time(plan: BatchPlan) -> str:
    if plan.sample is None or plan.estimated_seconds is None:
        return "not known; --sample N answers N rows to learn it"
    sample = plan.sample
    failed = f", {count(sample.num_failed)} of which failed" if sample.num_failed else ""
    rows = counted(sample.num_rows, "row")
    return (
        f"about {duration(plan.estimated_seconds)} after start-up: {rows}{failed} took "
        f"{_short(sample.seconds)}, and many at once take less each"
    )


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
