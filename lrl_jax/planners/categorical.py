"""The cross-entropy method over plans of discrete actions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.planners import common
from lrl_jax.planners.common import Best, CostFn, PlanState
from lrl_jax.spaces import Discrete


class _Search(struct.Node):
    """Carry of the iterations; n is the number of actions, E the number of kept elites."""

    probs: jax.Array  # [H, n]
    kept: jax.Array  # [E, H] actions
    has_kept: jax.Array  # [] bool
    best: Best  # plan [H]


@dataclasses.dataclass(frozen=True)
class CategoricalCEM(common.KeepsElites):
    """Cross-entropy method for a Discrete space: probabilities follow the elites' frequencies.

    Written for one instance; map it with `jax.vmap`. Plans have shape [H] and an integer dtype.

    Attributes:
        horizon: steps H of a plan.
        num_samples: candidates N of an iteration.
        elite_ratio: int(N * elite_ratio) candidates are elites; at least 2 are needed.
        n_iterations: refits.
        alpha: momentum, new = alpha * old + (1 - alpha) * frequencies.
        return_mode: "mean" takes the likeliest action of each step, "best" the best candidate
            evaluated, "sample" draws from the last fit.
        explore: weight of the uniform distribution that every plan's start is mixed with, which
            is what resetting the std is to a Gaussian; 1 forgets the kept probabilities.
        min_prob: probability that no action falls below while sampling, times n at most 1.
        keep_elites: fraction of the elites that stay candidates in the next iteration.
        shift_elites: fraction of the elites that are candidates at the next decision, moved by a
            step.

    Raises:
        ValueError: for settings out of range. TypeError: for settings of another type.
    """

    horizon: int
    num_samples: int = 256
    elite_ratio: float = 0.05
    n_iterations: int = 6
    alpha: float = 0.1
    return_mode: str = "best"
    explore: float = 0.5
    min_prob: float = 0.0
    keep_elites: float = 0.3
    shift_elites: float = 0.3

    space_type: ClassVar[type] = Discrete

    def __post_init__(self):
        self._check_settings(("alpha", "explore", "min_prob", "keep_elites", "shift_elites"))
        self._check_elites()

    @property
    def population(self) -> tuple[int, ...]:
        """Number of candidates of each iteration."""
        return (self.num_samples,) * self.n_iterations

    def check(self, space: Discrete) -> None:
        """Raise a TypeError or ValueError if plans over `space` are not for this optimiser."""
        if not isinstance(space, Discrete):
            raise TypeError(
                f"CategoricalCEM plans over a Discrete space, got {space!r}: "
                f"use CEM or ICEM for a Box."
            )
        if self.min_prob * space.n > 1:
            raise ValueError(
                f"min_prob={self.min_prob} times {space.n} actions exceeds 1: "
                f"lower it to at most {1 / space.n:.3g}."
            )

    def init(self, space: Discrete) -> PlanState:
        """State before the first plan: all actions equally likely."""
        self.check(space)
        return PlanState(
            mean=jnp.full((self.horizon, space.n), 1.0 / space.n, jnp.float32),
            elites=jnp.zeros((self.n_shifted, self.horizon), space.dtype),
            has_elites=jnp.zeros((), bool),
        )

    def plan(
        self, cost_fn: CostFn, plan_state: PlanState, key: jax.Array, space: Discrete
    ) -> tuple[jax.Array, PlanState, dict[str, jax.Array]]:
        """Search for a cheap plan, starting from the kept one.

        Args:
            cost_fn: maps plans [N, H] of integers to costs [N]. A cost that is not finite never
                wins.
            plan_state: from `init`, `shift` or an earlier call.
            key: consumed.
            space: what a step of a plan is in.

        Returns:
            plan [H], the new state, and scalars: `cost` of the best candidate, `elite_cost`
            (mean of the last elites), `std` (mean root of the Gini impurity 1 - sum p^2).
        """
        self.check(space)
        key, key_sample = jax.random.split(key)
        probs = (1 - self.explore) * plan_state.mean + self.explore / space.n
        kept = jnp.zeros((max(self.n_kept, self.n_shifted), self.horizon), space.dtype)
        kept = kept.at[: self.n_shifted].set(plan_state.elites)
        best = Best(jnp.argmax(probs, -1).astype(space.dtype), jnp.full((), jnp.inf, jnp.float32))
        search = _Search(probs, kept, plan_state.has_elites, best)

        def body(search, x):
            key, first = x
            return self._refit(cost_fn, search, key, space, first)

        keys = jax.random.split(key, self.n_iterations)
        first = jnp.arange(self.n_iterations) == 0
        search, elite_cost = jax.lax.scan(body, search, (keys, first))
        if self.return_mode == "best":
            plan = search.best.plan
        elif self.return_mode == "sample":
            plan = self._draw(search.probs, key_sample, 1, space)[0]
        else:
            plan = jnp.argmax(search.probs, -1).astype(space.dtype)
        state = PlanState(search.probs, search.kept[: self.n_shifted], search.has_kept)
        impurity = jnp.maximum(1.0 - (search.probs**2).sum(-1), 0.0)
        info = {
            "cost": search.best.cost,
            "elite_cost": elite_cost[-1],
            "std": jnp.sqrt(impurity).mean(),
        }
        return plan, state, info

    def _refit(self, cost_fn, search, key, space, first):
        """One iteration: draw, evaluate, count."""
        fresh = self._draw(search.probs, key, self.num_samples, space)
        candidates = self._with_kept(search, fresh, first)
        cost = common.finite_costs(cost_fn(candidates), self.num_samples)
        elites, elite_cost, number, mean_cost = self._elites(candidates, cost)
        finite = jnp.isfinite(elite_cost)[:, None, None]
        counts = (jax.nn.one_hot(elites, space.n) * finite).sum(0)
        frequency = counts / jnp.maximum(number, 1.0)
        enough = number >= 2
        mixed = self.alpha * search.probs + (1 - self.alpha) * frequency
        return _Search(
            probs=jnp.where(enough, mixed, search.probs),
            kept=jnp.where(enough, elites[: search.kept.shape[0]], search.kept),
            has_kept=enough | search.has_kept,
            best=common.update_best(search.best, elites[0], elite_cost[0]),
        ), mean_cost

    def _draw(self, probs, key, size, space):
        """Draw plans [size, H] from probabilities [H, n] by inverting their running sum."""
        probs = self.min_prob + (1 - self.min_prob * space.n) * probs
        cumulative = jnp.cumsum(probs, -1)
        # Scaled by the last entry, which rounding keeps from being 1.
        level = jax.random.uniform(key, (size, self.horizon)) * cumulative[:, -1]
        return (level[..., None] >= cumulative[:, :-1]).sum(-1).astype(space.dtype)
