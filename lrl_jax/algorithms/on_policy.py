"""Parts of on-policy learning: advantages, and shuffled minibatches."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def advantages(
    rew: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    discount: jax.Array,
    gae_lambda: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages (Schulman et al. 2016) of semi-MDP rows.

    delta_t = R_t + gamma_t (1 - terminated_t) V(s'_t) - V(s_t) and
    A_t = delta_t + gamma_t lambda (1 - ended_t) A_{t+1}, with A = 0 after an instance's last row:
    a termination cuts, a truncation cuts and bootstraps.

    Args:
        rew: R_t, accumulated over the row, float32 [T, n].
        value: V(s_t), [T, n].
        next_value: V(s'_t) of the row's own next observation, the true final one at an end, [T, n].
        terminated: bool [T, n].
        ended: terminated or truncated, bool [T, n].
        discount: gamma_t, float32 [] or [T, n].
        gae_lambda: float32 [].
        mask: rows that count, bool [T, n]; those of an instance follow each other.

    Returns:
        Advantages and value targets A_t + V(s_t), float32 [T, n] each; 0 where masked.
    """
    discount = jnp.broadcast_to(discount, rew.shape)
    delta = rew + discount * jnp.where(terminated, 0.0, next_value) - value
    delta = jnp.where(mask, delta, 0.0)
    decay = jnp.where(mask & ~ended, discount * gae_lambda, 0.0)

    # A_t = delta_t + decay_t A_{t+1} is a chain of affine maps, which compose in any order: a
    # logarithmic number of wide operations instead of T narrow ones.
    def compose(later, earlier):
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    advantage, _ = jax.lax.associative_scan(compose, (delta, decay), reverse=True)
    return advantage, jnp.where(mask, advantage + value, 0.0)


def permutations(key: jax.Array, n: int, size: int) -> jax.Array:
    """Random permutations of the integers below `size`, one per row, int32 [n, size].

    Each sorts one array of words with random high bits and the index in the low bits, which is
    several times as fast as `jax.random.permutation`. Words with equal high bits stay in order;
    of 32 bits, a million rows leave 12 to chance.

    Args:
        key: consumed.
        n: number of permutations.
        size: at most 2**24, so that at least 8 bits are random.
    """
    n_bits = max(size - 1, 1).bit_length()
    if n_bits > 24:
        raise ValueError(f"cannot shuffle {size} rows: use shorter rollouts, at most {2**24} rows.")
    index = jnp.arange(size, dtype=jnp.uint32)
    low = jnp.uint32((1 << n_bits) - 1)
    words = (jax.random.bits(key, (n, size), jnp.uint32) & ~low) | index
    return (jnp.sort(words, axis=1) & low).astype(jnp.int32)
