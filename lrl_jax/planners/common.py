"""What the optimisers of plans share: their state and elites."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.settings import check_choice, check_float, check_int, put_checked

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


def finite_costs(cost: jax.Array, n: int) -> jax.Array:
    """Costs [N] in float32 with inf where they are not finite, so that those never win."""
    if cost.shape != (n,):
        raise ValueError(
            f"cost_fn returned shape {cost.shape} for {n} plans: return one cost a plan, ({n},)."
        )
    cost = cost.astype(jnp.float32)
    return jnp.where(jnp.isfinite(cost), cost, jnp.inf)


def update_best(best: Best, plan: jax.Array, cost: jax.Array) -> Best:
    """Keep the cheaper one of `best` and a plan."""
    better = cost < best.cost
    return Best(jnp.where(better, plan, best.plan), jnp.where(better, cost, best.cost))


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


def population_sizes(
    num_samples: int, decay: float, n_iterations: int, floor: int
) -> tuple[int, ...]:
    """Candidates of each iteration, max(floor, int(num_samples * decay**-i)).

    Source: Pinneri et al. 2020, algorithm 1, line 4, with floor = 2 * number of elites.
    """
    sizes = (int(num_samples * decay**-i) for i in range(n_iterations))
    return tuple(min(num_samples, max(floor, size)) for size in sizes)


class KeepsElites:
    """What the cross-entropy methods share: how many elites they keep, and how.

    For frozen dataclasses with these settings, and `_Search` carries with `kept` and `has_kept`.
    """

    num_samples: int
    elite_ratio: float
    keep_elites: float
    shift_elites: float
    return_mode: str

    def _check_settings(self, fractions: tuple[str, ...]) -> None:
        """Check what all of them have, and settings in [0, 1]."""
        put_checked(self, check_int, ("horizon", "n_iterations"), 1)
        put_checked(self, check_int, ("num_samples",), 2)
        put_checked(self, functools.partial(check_float, above=True), ("elite_ratio",), 0.0, 1.0)
        put_checked(self, check_float, fractions, 0.0, 1.0)
        check_choice("return_mode", self.return_mode, RETURN_MODES)

    def _check_elites(self, n_others: int = 0) -> None:
        """Refuse to keep so many candidates that there would be no new ones."""
        least = min(self.population)
        if max(self.n_kept, self.n_shifted) + n_others >= least:
            raise ValueError(
                f"{self.n_elites} elites kept among {least} candidates leave no new ones: lower "
                f"elite_ratio={self.elite_ratio}, keep_elites={self.keep_elites} or "
                f"shift_elites={self.shift_elites}."
            )

    @property
    def population(self) -> tuple[int, ...]:
        """Number of candidates of each iteration."""
        raise NotImplementedError

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
        """Warm start of the next decision: the kept plan moved by a step, the last repeated."""

        def later(x, axis):
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            rest = jax.lax.slice_in_dim(x, 1, x.shape[axis], axis=axis)
            return jnp.concatenate([rest, last], axis)

        return plan_state.replace(
            mean=later(plan_state.mean, 0), elites=later(plan_state.elites, 1)
        )

    def _with_kept(self, search: Any, fresh: jax.Array, first: jax.Array | bool) -> jax.Array:
        """Draws [N, H, ...] with kept plans in the place of the first of them.

        In the first iteration those of the last decision, in later ones the elites so far.
        """
        candidates = fresh
        if self.n_shifted:
            # What was the end of the horizon is new ground after the shift.
            shifted = search.kept[: self.n_shifted].at[:, -1].set(fresh[: self.n_shifted, -1])
            candidates = _insert(candidates, shifted, first & search.has_kept)
        if self.n_kept:
            use = jnp.logical_not(first) & search.has_kept
            candidates = _insert(candidates, search.kept[: self.n_kept], use)
        return candidates

    def _elites(self, candidates: jax.Array, cost: jax.Array) -> tuple[jax.Array, ...]:
        """Cheapest of the candidates [N, ...], in order, and their costs.

        Also how many have a finite cost, float32 [], and the mean cost of these.
        """
        negative, index = jax.lax.top_k(-cost, self.n_elites)
        finite = jnp.isfinite(negative)
        number = finite.sum().astype(jnp.float32)
        mean = jnp.where(finite, -negative, 0.0).sum() / jnp.maximum(number, 1.0)
        return candidates[index], -negative, number, jnp.where(number > 0, mean, jnp.inf)


def _insert(candidates: jax.Array, rows: jax.Array, use: jax.Array) -> jax.Array:
    """Replace the first candidates by `rows` where `use` (scalar bool) holds."""
    n = rows.shape[0]
    return candidates.at[:n].set(jnp.where(use, rows, candidates[:n]))
