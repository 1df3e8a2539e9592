"""What the device can do at best, and what the smallest kernel costs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import Row
from benchmarks.accelerator import Found, Job, Sizes
from lrl_jax import benchmark

PRODUCTS = 8  # in a row, so that a call is longer than its launch
KINDS: dict[str, tuple[Any, Any]] = {
    "bfloat16": (jnp.bfloat16, None),
    "TF32": (jnp.float32, "tensorfloat32"),
    "float32": (jnp.float32, "highest"),
}


def _product(kind: str, size: int, repeats: int) -> Row:
    dtype, precision = KINDS[kind]
    a = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)

    def run(a, b):
        with jax.default_matmul_precision(precision or "default"):
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ b, a)

    name = f"{kind} products of {size} x {size}"
    timing = benchmark.compare({name: (run, (a, a))}, repeats)[name]
    return Row(name, timing, PRODUCTS * 2 * size**3, "FLOP")


def products(sizes: Sizes) -> Found:
    """Rates of matrix products."""
    return Found(tuple(_product(kind, sizes.product, sizes.repeats) for kind in KINDS))


def memory(sizes: Sizes) -> Found:
    """Bytes read and written a second."""
    x = jnp.zeros(sizes.copied_mb * 2**18, jnp.float32)
    name = f"copy of {sizes.copied_mb} MiB"
    timing = benchmark.compare({name: (lambda x: x + 1, (x,))}, sizes.repeats)[name]
    return Found((Row(name, timing, 2 * x.nbytes, "B"),))


def launches(sizes: Sizes) -> Found:
    """A call from Python, and a kernel inside a loop on the device."""
    n = sizes.launches

    def loop(x):
        # A sort is a separate kernel, whatever is fused.
        return jax.lax.fori_loop(0, n, lambda _, x: jnp.sort(-x), x)

    x = jnp.arange(64.0)
    call, kernels = "call of a small function", f"loop of {n} small sorts"
    timings = benchmark.compare(
        {call: (lambda x: x + 1, (x,)), kernels: (loop, (x,))}, sizes.repeats
    )
    return Found((Row(call, timings[call]), Row(kernels, timings[kernels], n, "iterations")))


JOBS = (
    Job("ceilings: products", 1, products),
    Job("ceilings: memory", 1, memory),
    Job("ceilings: launches", 1, launches),
)
