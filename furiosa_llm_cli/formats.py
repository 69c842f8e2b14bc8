"""How numbers look in everything that people read."""

from __future__ import annotations

LATENCY_NAMES = {
    "queue_s": "waiting for the first step",
    "ttft_s": "to the first token",
    "tpot_s": "per further token",
    "e2e_s": "to the end of the answer",
}

_MINUTE = 60
_HOUR = 3600


def count(value: int) -> str:
    """Returns `12,345`."""
    return f"{value:,}"


def rate(per_second: float) -> str:
    """Returns `1,234`, and `12.3` where the decimal matters."""
    return f"{per_second:,.1f}" if abs(per_second) < 99.95 else f"{per_second:,.0f}"


def percent(share: float) -> str:
    """Returns `97.5 %` for 0.975, and `42 %` where there is nothing after the point."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def share(part: int, whole: int) -> str:
    """Returns `97.5 %` for 39 of 40, and `0 %` of nothing."""
    return percent(part / whole if whole else 0.0)


def part_of(part: int, whole: int) -> str:
    """Returns `39 of 40 (97.5 %)`."""
    return f"{count(part)} of {count(whole)} ({share(part, whole)})"


def gibibytes(num_bytes: int) -> str:
    """Returns `23.5 GiB`."""
    return f"{num_bytes / 2**30:,.1f} GiB"


def data_size(num_bytes: int) -> str:
    """Returns `23.5 GiB`, and `3.2 MiB` where that says more."""
    if num_bytes >= 2**29:
        return gibibytes(num_bytes)
    return f"{num_bytes / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Returns `4.5 s`, `45 s`, `3 min 05 s` or `2 h 03 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


def one_line(text: str, max_length: int) -> str:
    """Puts a text on one line that does nothing to a terminal, and shortens it."""
    # Twice as much as will be shown: a prompt may be very long.
    words = " ".join(text[: 2 * max_length + 100].split())
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in words)
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"
