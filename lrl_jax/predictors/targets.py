"""n-step value targets over partial trajectories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.predictors.checks import check_gamma
from lrl_jax.settings import check_int


def n_step_windows(
    reward: jax.Array, done: jax.Array, discount: jax.Array, last: Any, n_steps: int
) -> tuple[jax.Array, jax.Array, Any]:
    """Sum up to `n_steps` rows from every row on, stopping after the first that ends.

    Windows of length w and w' compose to one of length w + w', so O(log n) vectorised doublings
    do; nothing is divided and nothing is subtracted, so no accuracy is lost at any discount.

    Args:
        reward: [B, L].
        done: [B, L] bool, whether the row ends its trajectory.
        discount: [B, L], what multiplies everything after the row.
        last: pytree of [B, L] of which the window's last row is wanted.
        n_steps: largest number n of rows in a window.

    Returns:
        The discounted sum [B, K], K = L - n + 1; the product [B, K] of the discounts of the rows
        in the window; and `last` [B, K] at the window's last row.
    """
    length = reward.shape[-1]

    def compose(a, width_a, b, width_b):
        # Rows t and t + width_a, for all t at which both windows fit.
        n_rows = length - width_a - width_b + 1
        sum_a, prod_a, alive_a, last_a = jax.tree.map(lambda x: x[:, :n_rows], a)
        sum_b, prod_b, alive_b, last_b = jax.tree.map(lambda x: x[:, width_a : width_a + n_rows], b)
        # Selects, not products with 0: what comes after an end may be anything, NaN included.
        return (
            sum_a + jnp.where(alive_a, prod_a * sum_b, 0.0),
            prod_a * jnp.where(alive_a, prod_b, 1.0),
            alive_a & alive_b,
            jax.tree.map(lambda x, y: jnp.where(alive_a, y, x), last_a, last_b),
        )

    power, power_width = (reward, discount, ~done, last), 1
    result, width = None, 0
    remaining = n_steps
    while True:
        if remaining & 1:
            if result is None:
                result, width = power, power_width
            else:
                result = compose(result, width, power, power_width)
                width += power_width
        remaining >>= 1
        if not remaining:
            break
        power = compose(power, power_width, power, power_width)
        power_width *= 2
    total, product, _, last = jax.tree.map(lambda x: x[:, : length - n_steps + 1], result)
    return total, product, last


def valid_starts(done: jax.Array, k_steps: int) -> jax.Array:
    """[B, K] bool: nothing ended before row t, for `done` [B, L]."""
    steps = jnp.arange(done.shape[-1])
    first_end = jnp.min(jnp.where(done, steps, done.shape[-1]), axis=-1, keepdims=True)
    return steps[:k_steps] <= first_end


def n_step_targets(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    next_value: jax.Array,
    gamma: float | jax.Array,
    n_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """n-step value targets of K consecutive rows, from K + n - 1 of them.

    With e the first row from t on that ended its trajectory and m = min(n, e - t + 1),

        value_t = sum_{j<m} gamma^j r_{t+j} + gamma^m (1 - terminated_{t+m-1}) V(s'_{t+m-1}).

    A row that is both terminated and truncated counts as terminated. Costs O((K + n) log n).

    Args:
        reward: [B, K + n - 1] float.
        terminated: [B, K + n - 1], whether the episode terminated at the row.
        truncated: [B, K + n - 1], whether it was cut, or the stored data stops after the row.
        next_value: [B, K + n - 1], value of each row's own next state.
        gamma: discount in [0, 1], a number or a traced scalar; [B, K + n - 1] for a discount of
            each row.
        n_steps: largest number n of rewards in a target.

    Returns:
        value [B, K] float32, 0 where not valid; valid [B, K] bool, nothing ended before t.

    Raises:
        ValueError: if shapes differ, are not two-dimensional, have fewer than n columns, or gamma
            is outside [0, 1].
    """
    n_steps = check_int("n_steps", n_steps, 1)
    check_gamma(gamma)
    arrays = {
        "reward": jnp.asarray(reward),
        "terminated": jnp.asarray(terminated),
        "truncated": jnp.asarray(truncated),
        "next_value": jnp.asarray(next_value),
    }
    shapes = {name: x.shape for name, x in arrays.items()}
    if len(set(shapes.values())) > 1 or len(shapes["reward"]) != 2:
        raise ValueError(f"all of them must have the same shape [B, K + n - 1], got {shapes}.")
    length = shapes["reward"][1]
    if length < n_steps:
        raise ValueError(
            f"{length} columns hold no target of {n_steps} steps: give K + n_steps - 1 columns."
        )
    discount = jnp.asarray(gamma, jnp.float32)
    if discount.ndim and discount.shape != shapes["reward"]:
        raise ValueError(
            f"gamma must be a scalar or of shape {shapes['reward']}, got {discount.shape}."
        )
    reward, next_value = (arrays[k].astype(jnp.float32) for k in ("reward", "next_value"))
    terminated, truncated = (arrays[k].astype(bool) for k in ("terminated", "truncated"))
    done = terminated | truncated
    bootstrap = jnp.where(terminated, 0.0, next_value)
    total, product, bootstrap = n_step_windows(
        reward, done, jnp.broadcast_to(discount, reward.shape), bootstrap, n_steps
    )
    valid = valid_starts(done, length - n_steps + 1)
    return jnp.where(valid, total + product * bootstrap, 0.0), valid
