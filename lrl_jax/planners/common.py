"""What the optimisers of plans share: their state and elites."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrl_jax import struct

CostFn = Callable[[jax.Array], jax.Array]

RETURN_MODES = ("mean", "best", "sample")


class PlanState(struct.Node):
    """What an optimiser keeps of an instance from one decision to the next.

    H is the horizon, E the number of kept elites (0 where none are kept).
    """

    mean: jax.Array  # [H, *A] float32 mean, or [H, n] probabilities of a Discrete space
    elites: jax.Array  # [E, H, *A] best plans found, in the space's dtype
    has_elites: jax.Array  # [] bool, false until the first plan


class Best(struct.Node):
    """The cheapest plan seen so far."""

    plan: jax.Array  # [H, *A]
    cost: jax.Array  # [] float32, inf while no cost was finite


def shift(state: PlanState) -> PlanState:
    """Move a kept plan forward by one step; its last step is repeated."""

    def later(x, axis):
        last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
        rest = jax.lax.slice_in_dim(x, 1, x.shape[axis], axis=axis)
        return jnp.concatenate([rest, last], axis)

    return state.replace(mean=later(state.mean, 0), elites=later(state.elites, 1))


def finite_costs(cost: jax.Array, n: int) -> jax.Array:
    """Costs [N] in float32 with inf where they are not finite, so that those never win."""
    if cost.shape != (n,):
        raise ValueError(
            f"cost_fn returned shape {cost.shape} for {n} plans: return one cost a plan, ({n},)."
        )
    cost = cost.astype(jnp.float32)
    return jnp.where(jnp.isfinite(cost), cost, jnp.inf)


def select_elites(
    candidates: jax.Array, cost: jax.Array, n_elites: int
) -> tuple[jax.Array, jax.Array]:
    """Cheapest `n_elites` of the candidates [N, ...], in order, and their costs."""
    negative, index = jax.lax.top_k(-cost, n_elites)
    return candidates[index], -negative


def update_best(best: Best, plan: jax.Array, cost: jax.Array) -> Best:
    """Keep the cheaper one of `best` and a plan."""
    better = cost < best.cost
    return Best(jnp.where(better, plan, best.plan), jnp.where(better, cost, best.cost))


def insert_rows(
    candidates: jax.Array, rows: jax.Array, use: jax.Array, start: int = 0
) -> jax.Array:
    """Replace candidates from row `start` on by `rows` where `use` (scalar bool) holds."""
    stop = start + rows.shape[0]
    rows = jnp.where(use, rows, candidates[start:stop])
    return candidates.at[start:stop].set(rows)


def n_elites(num_samples: int, elite_ratio: float, minimum: int = 2) -> int:
    """Number of elites, int(num_samples * elite_ratio); ValueError if below `minimum`."""
    # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996: forgive the last bits.
    number = int(num_samples * elite_ratio + 1e-9)
    if number < minimum:
        raise ValueError(
            f"num_samples={num_samples} and elite_ratio={elite_ratio} leave {number} elites, but "
            f"at least {minimum} are needed: raise elite_ratio to "
            f"{minimum / num_samples:.3g} or num_samples to {math.ceil(minimum / elite_ratio)}."
        )
    return number


def population_sizes(num_samples: int, decay: float, n_iterations: int, floor: int) -> list[int]:
    """Candidates of each iteration, max(floor, int(num_samples * decay**-i)).

    Source: Pinneri et al. 2020, algorithm 1, line 4, with floor = 2 * number of elites.
    """
    return [min(num_samples, max(floor, int(num_samples * decay**-i))) for i in range(n_iterations)]


class KeepsElites:
    """Settings of an optimiser that keeps elites: how many, and the warm start.

    For frozen dataclasses with num_samples, elite_ratio, keep_elites and shift_elites.
    """

    num_samples: int
    elite_ratio: float
    keep_elites: float
    shift_elites: float

    @property
    def n_elites(self) -> int:
        """Number of elites of an iteration."""
        return n_elites(self.num_samples, self.elite_ratio)

    @property
    def n_kept(self) -> int:
        """Elites that go into the next iteration."""
        return math.ceil(self.n_elites * self.keep_elites)

    @property
    def n_shifted(self) -> int:
        """Elites that go into the next decision."""
        return math.ceil(self.n_elites * self.shift_elites)

    def shift(self, plan_state: PlanState) -> PlanState:
        """Warm start of the next decision: move the kept plan by one step."""
        return shift(plan_state)
