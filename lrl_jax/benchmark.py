"""Honest timings of JAX functions: compilation apart, results waited for, repeats interleaved."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one call of a function takes.

    Attributes:
        compile_seconds: tracing and compilation; with `jit=False`, the first call.
        median: seconds of a call, the median over repeats.
        repeats: seconds of a call in each repeat, in the order they were taken.
        device: what it ran on.
    """

    compile_seconds: float
    median: float
    repeats: tuple[float, ...]
    device: str

    def rate(self, work: float) -> float:
        """Units of work a second, for calls that do `work` units each."""
        return work / self.median


def device_name() -> str:
    """Platform and kind of the default device, and how many there are."""
    devices = jax.devices()
    return f"{devices[0].platform}: {devices[0].device_kind} x {len(devices)}"


def compare(
    functions: Mapping[str, tuple[Callable, tuple]],
    repeats: int = 5,
    *,
    min_seconds: float = 0.0,
    jit: bool = True,
) -> dict[str, Timing]:
    """Time functions against each other in one process.

    The repeats are interleaved (a, b, a, b, ...), so that a machine that slows down for a while
    slows all of them, and ratios of the medians can be trusted further than the medians. Each
    function is called once before, unmeasured. The same arguments are passed every time, so
    functions must not donate them.

    Args:
        functions: name to (function, positional arguments).
        repeats: measured repeats of each, at least 1.
        min_seconds: a repeat calls its function as often as it takes to last that long.
        jit: compile the functions ahead; else they are called directly.

    Returns:
        A Timing for each name.

    Raises:
        ValueError: if there is nothing to time, or for numbers out of range.
    """
    if not functions:
        raise ValueError("there is no function to time: pass {name: (function, arguments)}.")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    if not math.isfinite(min_seconds) or min_seconds < 0:
        raise ValueError(f"min_seconds must be a finite number of at least 0, got {min_seconds}.")
    calls: dict[str, Callable[[], Any]] = {}
    compile_seconds, n_calls = {}, {}
    for name, (function, args) in functions.items():
        calls[name], compile_seconds[name] = _ready(function, args, jit)
        n_calls[name] = max(1, math.ceil(min_seconds / max(_seconds(calls[name], 1), 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(_seconds(call, n_calls[name]))
    return {
        name: Timing(
            compile_seconds[name], statistics.median(taken), tuple(taken), device=device_name()
        )
        for name, taken in seconds.items()
    }


def _ready(function: Callable, args: tuple, jit: bool) -> tuple[Callable[[], Any], float]:
    """The call to time, and the seconds that it took to get there."""
    start = time.perf_counter()
    if jit:
        lowerable: Any = function if hasattr(function, "lower") else jax.jit(function)
        function = lowerable.lower(*args).compile()
    else:
        jax.block_until_ready(function(*args))
    return lambda: function(*args), time.perf_counter() - start


def _seconds(call: Callable[[], Any], n: int) -> float:
    """Mean seconds of n calls, each waited for."""
    start = time.perf_counter()
    for _ in range(n):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / n
