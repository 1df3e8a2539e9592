"""Model predictive path integral control (Williams et al. 2015) as TD-MPC2 plans with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.planners.common import MAX_ITERATIONS
from lrl_jax.settings import check_float, check_int, put_checked

ValueFn = Callable[[jax.Array], jax.Array]

# Stands for the value of a plan that is not finite: never an elite while others are finite.
_WORST = -1e30


class MPPIMemory(struct.Node):
    """What is kept of an instance from one decision to the next."""

    mean: jax.Array  # [H, A] float32, mean of the last fit
    fresh: jax.Array  # [] bool, true until the first plan


class Fit(struct.Node):
    """A Gaussian fitted to the elites, best first, and the elites; E is their number."""

    mean: jax.Array  # [H, A]
    std: jax.Array  # [H, A]
    elites: jax.Array  # [E, H, A]
    score: jax.Array  # [E] log of the weights up to a constant; 0 for the best


@dataclasses.dataclass(frozen=True)
class MPPI:
    """Settings of the search for a plan, and its functions.

    Written for one instance; map it with `jax.vmap`. Plans are [H, A] with entries in [-1, 1].

    Attributes:
        horizon: steps H of a plan.
        num_samples: candidates N of an iteration.
        num_policy_samples: how many of them are given by a policy, the same in all iterations.
        num_elites: candidates that a fit is made to.
        n_iterations: fits.
        temperature: factor of the values in the elites' weights, exp(temperature * value).
        min_std, max_std: the std starts at `max_std` and is clipped to this range.

    Raises:
        ValueError: for settings out of range. TypeError: for settings of another type.
    """

    horizon: int = 3
    num_samples: int = 512
    num_policy_samples: int = 24
    num_elites: int = 64
    n_iterations: int = 6
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0

    def __post_init__(self):
        put_checked(self, check_int, ("horizon", "num_samples", "num_elites"), 1)
        put_checked(self, check_int, ("n_iterations",), 1, MAX_ITERATIONS)
        put_checked(self, check_int, ("num_policy_samples",), 0)
        put_checked(self, check_float, ("temperature", "min_std", "max_std"), 0.0)
        if self.num_policy_samples >= self.num_samples:
            raise ValueError(
                f"num_policy_samples={self.num_policy_samples} leaves none of "
                f"num_samples={self.num_samples} to the search: lower it or raise num_samples."
            )
        if self.num_elites > self.num_samples:
            raise ValueError(
                f"num_elites={self.num_elites} is above num_samples={self.num_samples}: "
                f"lower it, to an eighth of the samples as a rule."
            )
        if self.min_std > self.max_std:
            raise ValueError(f"min_std={self.min_std} is above max_std={self.max_std}.")

    @property
    def num_drawn(self) -> int:
        """Candidates of an iteration that are drawn around the mean."""
        return self.num_samples - self.num_policy_samples

    def init(self, action_dim: int) -> MPPIMemory:
        """Memory before the first plan."""
        return MPPIMemory(jnp.zeros((self.horizon, action_dim), jnp.float32), jnp.ones((), bool))

    def start(self, memory: MPPIMemory) -> jax.Array:
        """Mean [H, A] to start from: the last one moved by a step, or 0 if there is none."""
        shifted = jnp.concatenate([memory.mean[1:], jnp.zeros_like(memory.mean[:1])])
        return jnp.where(memory.fresh, 0.0, shifted)

    def fit(self, plans: jax.Array, values: jax.Array, temperature: jax.Array | float) -> Fit:
        """Fit mean and std to the best plans, weighted by exp(temperature * value).

        Args:
            plans: [N, H, A].
            values: [N]; one that is not finite counts as the worst.
            temperature: [], factor of the values.

        Returns:
            The fit. The std is the weighted one, clipped.
        """
        values = jnp.where(jnp.isfinite(values), values, _WORST)
        top, index = jax.lax.top_k(values, self.num_elites)
        elites = jnp.asarray(plans)[index]
        score = temperature * (top - top[0])
        weight = jnp.exp(score)
        weight = (weight / weight.sum())[:, None, None]
        mean = (weight * elites).sum(0)
        std = jnp.sqrt((weight * (elites - mean) ** 2).sum(0))
        return Fit(mean, jnp.clip(std, self.min_std, self.max_std), elites, score)

    def refine(
        self,
        mean: jax.Array,
        std: jax.Array,
        policy_plans: jax.Array,
        noise: jax.Array,
        value_fn: ValueFn,
        temperature: jax.Array | float,
    ) -> Fit:
        """One iteration: draw around the mean, evaluate, fit.

        Args:
            mean, std: [H, A].
            policy_plans: [P, H, A], candidates in addition to the drawn ones.
            noise: standard normal draws, [N - P, H, A].
            value_fn: maps plans [N, H, A] to values [N].
            temperature: [], factor of the values.

        Returns:
            The fit.
        """
        drawn = jnp.clip(mean + std * noise, -1.0, 1.0)
        plans = jnp.concatenate([policy_plans, drawn])
        return self.fit(plans, value_fn(plans), temperature)

    def search(
        self,
        memory: MPPIMemory,
        policy_plans: jax.Array,
        noise: jax.Array,
        value_fn: ValueFn,
        temperature: jax.Array | float | None = None,
    ) -> tuple[Fit, MPPIMemory]:
        """All iterations.

        Args:
            memory: of `init` or of the last decision.
            policy_plans: [P, H, A].
            noise: standard normal draws, [n_iterations, N - P, H, A].
            value_fn: maps plans [N, H, A] to values [N].
            temperature: [], in the place of the setting.

        Returns:
            The last fit, and what to remember.

        Raises:
            ValueError: if the number of plans or draws does not fit the settings.
        """
        want = (self.n_iterations, self.num_drawn, *memory.mean.shape)
        if noise.shape != want or policy_plans.shape[0] != self.num_policy_samples:
            raise ValueError(
                f"expected {self.num_policy_samples} policy plans and noise {want}, got plans "
                f"{policy_plans.shape} and noise {noise.shape}."
            )
        factor = self.temperature if temperature is None else temperature
        mean = self.start(memory)
        fit = Fit(
            mean=mean,
            std=jnp.full_like(mean, self.max_std),
            elites=jnp.zeros((self.num_elites, *mean.shape), jnp.float32),
            score=jnp.zeros((self.num_elites,), jnp.float32),
        )

        def body(fit, draws):
            return self.refine(fit.mean, fit.std, policy_plans, draws, value_fn, factor), None

        fit, _ = jax.lax.scan(body, fit, noise)
        return fit, MPPIMemory(fit.mean, jnp.zeros((), bool))

    def explore(self, fit: Fit, gumbel: jax.Array, noise: jax.Array) -> jax.Array:
        """First action [A] of an elite drawn by its weight, with noise of the fit's std.

        Args:
            fit: of the last iteration.
            gumbel: standard Gumbel draws, [E].
            noise: standard normal draws, [A].
        """
        chosen = fit.elites[jnp.argmax(fit.score + gumbel), 0]
        return jnp.clip(chosen + fit.std[0] * noise, -1.0, 1.0)

    def exploit(self, fit: Fit) -> jax.Array:
        """First action [A] of the best elite."""
        return fit.elites[0, 0]
