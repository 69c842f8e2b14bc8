"""Results of measurements with short defaults."""

from __future__ import annotations

from benchmarks.results import Run, Session, WorkloadResult


def make_run(
    engine: str = "other", precision: str = "float32", seconds: tuple[float, ...] = (2.0, 4.0)
) -> Run:
    return Run(
        engine=engine,
        is_ours=engine == "furiosa-llm",
        precision=precision,
        settings=("--parallel", "16"),
        seconds=seconds,
        startup_seconds=tuple(1.0 for _ in seconds),
        versions={"engine": "1.2"},
    )


def make_result(*runs: Run, workload: str = "mixed", flops: int | None = 10**11) -> WorkloadResult:
    return WorkloadResult(
        model="llama-135m",
        workload=workload,
        num_requests=64,
        num_prompt_tokens=1000,
        num_output_tokens=200,
        flops=flops,
        matrix_rates=(100.0, 200.0),
        linear_rates=(90.0, 190.0),
        runs=runs,
    )


def make_session(
    *results: WorkloadResult,
    kind: str = "peers",
    started_at: str = "2020-01-02T03:04:05+00:00",
    cpu: str = "a processor",
) -> Session:
    return Session(
        kind=kind,
        started_at=started_at,
        machine={
            "cpu": cpu,
            "cpu_features": {"avx2": True, "avx512f": False},
            "cores": 2,
            "usable_cores": 2,
            "memory_bytes": 8 * 2**30,
            "system": "Linux",
        },
        versions={"furiosa-llm-cli": "0.1.0", "numba": None},
        workloads=results,
    )
