"""Common parts of plan optimisers: their state and elites."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.settings import check_choice, check_float, check_int, put_checked

CostFn = Callable[[jax.Array], jax.Array]

#: Of a search: there is a population for each.
MAX_ITERATIONS = 10**6
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


class Search(struct.Node):
    """Carry of the iterations; an action is flat, [F], or an integer, []."""

    mean: jax.Array  # [H, F], or [H, n] probabilities
    std: Any  # [H, F], or None
    kept: jax.Array  # [E, H, F] or [E, H], the elites that are kept
    has_kept: jax.Array  # [] bool
    best: Best  # plan [H, F] or [H]


def finite_costs(cost: jax.Array, n: int) -> jax.Array:
    """Costs [N] in float32 with inf where they are not finite, so that those never win."""
    if cost.shape != (n,):
        raise ValueError(
            f"cost_fn returned shape {cost.shape} for {n} plans: return one cost a plan, ({n},)."
        )
    cost = cost.astype(jnp.float32)
    return jnp.where(jnp.isfinite(cost), cost, jnp.inf)


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


class CrossEntropyMethod(abc.ABC):
    """Abstract: draw plans, fit a distribution to the cheapest, the elites, and so on.

    For frozen dataclasses with these settings.
    """

    horizon: int
    num_samples: int
    elite_ratio: float
    keep_elites: float
    shift_elites: float
    n_iterations: int
    return_mode: str
    mean_candidate: bool = False

    @abc.abstractmethod
    def check(self, space: Any) -> None:
        """Raise a TypeError or ValueError if plans over `space` are not for this optimiser."""

    @abc.abstractmethod
    def init(self, space: Any) -> PlanState:
        """State before the first plan."""

    @abc.abstractmethod
    def _start(self, plan_state: PlanState, space: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Mean and std that a search starts from, and the likeliest plan."""

    @abc.abstractmethod
    def _draw(self, search: Search, key: jax.Array, size: int, space: Any) -> jax.Array:
        """Draw `size` plans from the present fit; consumes `key`."""

    @abc.abstractmethod
    def _fit(self, search: Search, elites: jax.Array, counts: jax.Array, number: jax.Array) -> Any:
        """Mean and std of the elites that `counts` [E] selects, mixed with those before."""

    @abc.abstractmethod
    def _likeliest(self, search: Search, space: Any) -> jax.Array:
        """The likeliest plan of a fit."""

    @abc.abstractmethod
    def _spread(self, search: Search) -> jax.Array:
        """How wide a fit is, []."""

    def _check_settings(self, fractions: tuple[str, ...]) -> None:
        """Check what all of them have, and settings in [0, 1]."""
        put_checked(self, check_int, ("horizon",), 1)
        put_checked(self, check_int, ("n_iterations",), 1, MAX_ITERATIONS)
        put_checked(self, check_int, ("num_samples",), 2)
        put_checked(self, functools.partial(check_float, above=True), ("elite_ratio",), 0.0, 1.0)
        put_checked(self, check_float, fractions, 0.0, 1.0)
        put_checked(self, check_choice, ("return_mode",), RETURN_MODES)

    def _check_elites(self, n_others: int = 0) -> None:
        """Refuse settings that keep all candidates and leave no room for new ones."""
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
        return (self.num_samples,) * self.n_iterations

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

    def plan(
        self, cost_fn: CostFn, plan_state: PlanState, key: jax.Array, space: Any
    ) -> tuple[jax.Array, PlanState, dict[str, jax.Array]]:
        """Search for a cheap plan, starting from the kept one.

        Args:
            cost_fn: maps plans [N, H, *A] to costs [N]. A cost that is not finite never wins.
            plan_state: from `init`, `shift` or an earlier call.
            key: consumed.
            space: what a step of a plan is in.

        Returns:
            plan [H, *A] in the space, the new state, and scalars: `cost` of the best candidate,
            `elite_cost` (mean of the last elites), `std` (mean of the last fit; of a Discrete space
            the mean root of the Gini impurity 1 - sum p^2).
        """
        self.check(space)
        key, key_sample = jax.random.split(key)
        search, elite_cost = self._iterate(cost_fn, plan_state, key, space)
        if self.return_mode == "sample":
            plan = self._draw(search, key_sample, 1, space)[0]
        else:
            best = self.return_mode == "best"
            plan = search.best.plan if best else self._likeliest(search, space)
        elites = search.kept[: self.n_shifted].reshape(plan_state.elites.shape)
        state = PlanState(search.mean.reshape(plan_state.mean.shape), elites, search.has_kept)
        spread = self._spread(search)
        info = {"cost": search.best.cost, "elite_cost": elite_cost, "std": spread}
        return plan.reshape(self.horizon, *space.shape), state, info

    def _iterate(self, cost_fn, plan_state, key, space):
        """Run all iterations. Returns the last Search and the mean cost of its elites."""
        mean, std, likeliest = self._start(plan_state, space)
        # One array serves both ways of keeping elites, so its size is that of the larger one.
        n_rows, n = max(self.n_kept, self.n_shifted), self.n_shifted
        kept = jnp.zeros((n_rows, *likeliest.shape), plan_state.elites.dtype)
        kept = kept.at[:n].set(plan_state.elites.reshape(n, *likeliest.shape))
        best = Best(likeliest, jnp.full((), jnp.inf, jnp.float32))
        search = Search(mean, std, kept, plan_state.has_elites, best)
        sizes, last = self.population, self.n_iterations - 1
        keys = jax.random.split(key, self.n_iterations)
        if len(set(sizes)) > 1:
            elite_cost = jnp.zeros((), jnp.float32)
            for i, size in enumerate(sizes):
                flags = (i == 0, i == last)
                search, elite_cost = self._refit(cost_fn, search, keys[i], space, *flags, size)
            return search, elite_cost

        def body(search, x):
            data, i = x
            key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))
            return self._refit(cost_fn, search, key, space, i == 0, i == last, sizes[0])

        # As data: under a vmap JAX takes keys that are scanned over for keys used twice.
        over = (jax.random.key_data(keys), jnp.arange(self.n_iterations))
        search, elite_cost = jax.lax.scan(body, search, over)
        return search, elite_cost[-1]

    def _refit(self, cost_fn, search, key, space, first, last, size):
        """One iteration: draw, evaluate, fit. `first` and `last` may be traced."""
        candidates = self._with_kept(search, self._draw(search, key, size, space), first)
        if self.mean_candidate:
            # The last row: in a search of one iteration shifted elites fill the first ones.
            mean = jnp.where(last, search.mean, candidates[-1])
            candidates = candidates.at[-1].set(mean)
        cost = finite_costs(cost_fn(candidates.reshape(size, self.horizon, *space.shape)), size)
        negative, index = jax.lax.top_k(-cost, self.n_elites)
        elites, elite_cost = candidates[index], -negative
        # Elites without a finite cost count for nothing; the fit stays where fewer than two are
        # left to take a std from.
        counts = jnp.isfinite(elite_cost)
        number = counts.sum().astype(jnp.float32)
        enough = number >= 2
        mean, std = self._fit(search, elites, counts, number)

        def select(where, new, old):
            return jax.tree.map(lambda a, b: jnp.where(where, a, b), new, old)

        old, new = (search.mean, search.std, search.kept), (mean, std, elites[: len(search.kept)])
        best = Best(elites[0], elite_cost[0])
        best = select(best.cost < search.best.cost, best, search.best)
        mean_cost = jnp.where(counts, elite_cost, 0.0).sum() / jnp.maximum(number, 1.0)
        mean, std, kept = select(enough, new, old)
        search = Search(mean, std, kept, enough | search.has_kept, best)
        return search, jnp.where(number > 0, mean_cost, jnp.inf)

    def _with_kept(self, search: Search, fresh: jax.Array, first: jax.Array | bool) -> jax.Array:
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


def _insert(candidates: jax.Array, rows: jax.Array, use: jax.Array) -> jax.Array:
    """Replace the first candidates by `rows` where `use` (scalar bool) holds."""
    n = rows.shape[0]
    return candidates.at[:n].set(jnp.where(use, rows, candidates[:n]))
