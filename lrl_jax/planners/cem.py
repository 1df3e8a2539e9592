"""The cross-entropy method over continuous plans, with the improvements of iCEM as settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from lrl_jax.planners.common import CrossEntropyMethod, PlanState, population_sizes
from lrl_jax.planners.noise import colouring_matrix
from lrl_jax.settings import (
    check_choice,
    check_flag,
    check_float,
    check_positive,
    check_tuple,
    plain,
    put_checked,
)
from lrl_jax.spaces import Box

SAMPLING = ("clip", "truncated_normal")


def _check_sigma(name: str, value: Any) -> float | tuple[float, ...]:
    """Return one positive number, or a tuple of several."""
    if isinstance(value, tuple | list | np.ndarray | jax.Array) and np.ndim(plain(name, value)):
        value = np.ravel(value).tolist() or [math.nan]  # none at all is refused
        return check_tuple(name, value, check_positive)
    return check_positive(name, value)


@dataclasses.dataclass(frozen=True)
class CEM(CrossEntropyMethod):
    """Cross-entropy method (Rubinstein 1999): sample plans, refit a Gaussian to the cheapest.

    Written for one instance; map it with `jax.vmap`. Plans have shape [H, *A] with H the horizon
    and A the shape of an action. With the defaults this is plain CEM; `ICEM` makes one
    with other defaults.

    Attributes:
        horizon: steps H of a plan.
        num_samples: candidates N of an iteration (of the first one, with `sample_decay`).
        elite_ratio: int(N * elite_ratio) candidates are elites; at least 2 are needed.
        n_iterations: refits.
        sigma: initial std at every plan. In units of half the width of the bounds where both are
            finite, else in units of the action. One number, or one for each action entry.
        alpha: momentum, new = alpha * old + (1 - alpha) * elites', of mean and std (n - 1).
        return_mode: "mean" of the last fit, "best" candidate evaluated, or a "sample" of the
            last fit.
        sampling: "clip" normal draws to the bounds, or draw from the "truncated_normal".
        noise_beta: power-law exponent of the noise over the steps of a plan; 0 is white.
        keep_elites: fraction of the elites that stay candidates in the next iteration.
        shift_elites: fraction of the elites that are candidates at the next decision, moved by a
            step. The last step is new. Kept plans take the place of draws.
        sample_decay: iteration i has max(2 * elites, int(N * sample_decay**-i)) candidates. Above
            1 the iterations are unrolled, so that compile time grows with their number.
        mean_candidate: whether the mean is a candidate in the last iteration.

    Raises:
        ValueError: for settings out of range. TypeError: for settings of another type.
    """

    horizon: int
    num_samples: int = 256
    elite_ratio: float = 0.05
    n_iterations: int = 6
    sigma: float | tuple[float, ...] = 1.0
    alpha: float = 0.1
    return_mode: str = "mean"
    sampling: str = "clip"
    noise_beta: float = 0.0
    keep_elites: float = 0.0
    shift_elites: float = 0.0
    sample_decay: float = 1.0
    mean_candidate: bool = False

    space_type: ClassVar[type] = Box

    def __post_init__(self):
        self._check_settings(("alpha", "keep_elites", "shift_elites"))
        put_checked(self, check_float, ("noise_beta",))
        put_checked(self, check_float, ("sample_decay",), 1.0)
        put_checked(self, check_choice, ("sampling",), SAMPLING)
        put_checked(self, check_flag, ("mean_candidate",))
        put_checked(self, _check_sigma, ("sigma",))
        self._check_elites(int(self.mean_candidate))

    @property
    def population(self) -> tuple[int, ...]:
        """Number of candidates of each iteration."""
        least = 2 * self.n_elites
        return population_sizes(self.num_samples, self.sample_decay, self.n_iterations, least)

    def check(self, space: Box) -> None:
        """Raise a TypeError or ValueError if plans over `space` are not for this optimiser."""
        if not isinstance(space, Box):
            raise TypeError(
                f"{type(self).__name__} plans over a Box, got {space!r}: "
                f"use CategoricalCEM for a Discrete space."
            )
        if isinstance(self.sigma, tuple) and len(self.sigma) != space.dim:
            raise ValueError(
                f"sigma has {len(self.sigma)} entries, but an action has {space.dim}: "
                f"give one number or one for each entry."
            )

    def init(self, space: Box) -> PlanState:
        """State before the first plan: the mean is the centre of the bounds, or 0 without."""
        self.check(space)
        low, high = space.bounds
        with np.errstate(invalid="ignore"):
            middle = np.where(_is_bounded(low, high), (low + high) / 2, np.clip(0.0, low, high))
        shape = (self.horizon, *space.shape)
        return PlanState(
            mean=jnp.broadcast_to(middle.astype(np.float32).reshape(space.shape), shape),
            elites=jnp.zeros((self.n_shifted, *shape), jnp.float32),
            has_elites=jnp.zeros((), bool),
        )

    def _start(self, plan_state, space):
        mean = plan_state.mean.reshape(self.horizon, space.dim)
        return mean, jnp.broadcast_to(_initial_std(self.sigma, space), mean.shape), mean

    def _fit(self, search, elites, counts, number):
        weight = counts[:, None, None]
        centre = jnp.where(weight, elites, 0.0).sum(0) / jnp.maximum(number, 1.0)
        square = jnp.where(weight, (elites - centre) ** 2, 0.0).sum(0)
        spread = jnp.sqrt(square / jnp.maximum(number - 1.0, 1.0))
        mix = jnp.float32(self.alpha)
        return mix * search.mean + (1 - mix) * centre, mix * search.std + (1 - mix) * spread

    def _draw(self, search, key, size, space):
        """Draw plans [size, H, F] within the bounds."""
        horizon, entries = search.mean.shape
        # The steps lead, so that colouring all draws is one matrix product.
        noise = jax.random.normal(key, (horizon, size * entries), jnp.float32)
        if self.noise_beta:
            noise = colouring_matrix(horizon, self.noise_beta) @ noise
        noise = jnp.moveaxis(noise.reshape(horizon, size, entries), 0, 1)
        low, high = space.bounds
        if self.sampling == "truncated_normal":
            noise = _truncate(noise, search.mean, search.std, low, high)
        plans = search.mean + search.std * noise
        return jnp.clip(plans, low.astype(np.float32), high.astype(np.float32))

    def _likeliest(self, search, space):
        return search.mean

    def _spread(self, search):
        return search.std.mean()


def ICEM(horizon: int, num_samples: int = 256, **settings: Any) -> CEM:
    """Improved CEM (Pinneri et al. 2020): CEM with its additions switched on.

    Coloured noise (`noise_beta` 1), elites kept over iterations and, shifted, over decisions (0.3
    of them each), the mean as a candidate in the last iteration, the best candidate as the answer.
    Fewer candidates in later iterations are off by default (see `CEM`); the paper has a
    `sample_decay` of 1.25.

    Args:
        horizon, num_samples: see `CEM`.
        settings: of `CEM`, instead of the above.
    """
    additions: dict[str, Any] = {
        "return_mode": "best",
        "noise_beta": 1.0,
        "keep_elites": 0.3,
        "shift_elites": 0.3,
        "mean_candidate": True,
    }
    return CEM(horizon, num_samples, **{**additions, **settings})


def _is_bounded(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which entries have finite bounds; some spaces use the largest float for infinity."""
    with np.errstate(invalid="ignore"):
        return high - low < 1e30


def _initial_std(sigma: float | tuple[float, ...], space: Box) -> np.ndarray:
    """Std [F] in units of the action."""
    low, high = space.bounds
    with np.errstate(invalid="ignore"):
        unit = np.where(_is_bounded(low, high), (high - low) / 2, 1.0)
    return (np.asarray(sigma, np.float64) * unit).astype(np.float32)


def _truncate(noise, mean, std, low, high):
    """Turn normal draws [N, H, F] into draws of the normal truncated to the bounds, monotonely.

    Being monotone it keeps the draws' order over steps, so that it serves coloured noise as well.
    """
    std = jnp.maximum(std, 1e-6)
    below = ndtr((low.astype(np.float32) - mean) / std)
    above = ndtr((high.astype(np.float32) - mean) / std)
    level = below + (above - below) * ndtr(noise)
    return ndtri(jnp.clip(level, 1e-6, 1 - 1e-6))
