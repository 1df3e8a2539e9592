"""The cross-entropy method over plans of discrete actions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lrl_jax.planners.common import CrossEntropyMethod, PlanState
from lrl_jax.spaces import Discrete


@dataclasses.dataclass(frozen=True)
class CategoricalCEM(CrossEntropyMethod):
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

    def _start(self, plan_state, space):
        probs = (1 - self.explore) * plan_state.mean + self.explore / space.n
        return probs, None, jnp.argmax(probs, -1).astype(space.dtype)

    def _fit(self, search, elites, counts, number):
        chosen = jax.nn.one_hot(elites, search.mean.shape[-1], dtype=jnp.float32)
        chosen = chosen * counts[:, None, None]
        frequency = chosen.sum(0) / jnp.maximum(number, 1.0)
        return self.alpha * search.mean + (1 - self.alpha) * frequency, None

    def _draw(self, search, key, size, space):
        """Draw plans [size, H] by inverting the running sum of the probabilities."""
        probs = self.min_prob + (1 - self.min_prob * space.n) * search.mean
        cumulative = jnp.cumsum(probs, -1)
        # Scaled by the last entry, which rounding keeps from being 1.
        level = jax.random.uniform(key, (size, self.horizon), jnp.float32) * cumulative[:, -1]
        return (level[..., None] >= cumulative[:, :-1]).sum(-1).astype(space.dtype)

    def _likeliest(self, search, space):
        return jnp.argmax(search.mean, -1).astype(space.dtype)

    def _spread(self, search):
        return jnp.sqrt(jnp.maximum(1.0 - (search.mean**2).sum(-1), 0.0)).mean()
