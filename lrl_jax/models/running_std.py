"""Running standard deviation of state differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lrl_jax import struct

MIN_STD = 1e-6


class RunningStd(struct.Node):
    """Root of a running second moment; the mean is not removed."""

    second_moment: jax.Array  # [D] float32
    initialised: jax.Array  # [] bool, whether a batch has been seen

    @property
    def std(self) -> jax.Array:
        """[D], at least a millionth, so that dividing by it is safe."""
        return jnp.maximum(jnp.sqrt(self.second_moment), MIN_STD)


def init_running_std(dim: int) -> RunningStd:
    """Ones for `dim` entries, until the first batch."""
    return RunningStd(jnp.ones(dim, jnp.float32), jnp.zeros((), bool))


def update_running_std(
    running: RunningStd, delta: jax.Array, mask: jax.Array, momentum: float | jax.Array
) -> RunningStd:
    """Move towards the second moment of the rows of `delta` [B, D] with `mask` [B].

    The first batch with a valid row replaces the initial value; one without changes nothing.
    """
    weight = mask.astype(jnp.float32)
    count = weight.sum()
    square = jnp.where(mask.astype(bool)[:, None], jnp.square(delta), 0.0)
    batch = square.sum(0) / jnp.maximum(count, 1.0)
    rate = jnp.where(running.initialised, momentum, 1.0)
    rate = jnp.where(count > 0, rate, 0.0)
    # Weights instead of old + rate * (new - old), which would not give the first batch exactly.
    moment = (1.0 - rate) * running.second_moment + rate * batch
    return RunningStd(moment, running.initialised | (count > 0))
