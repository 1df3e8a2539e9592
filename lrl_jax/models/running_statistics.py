"""Running statistics of what a level sees: a normaliser of observations, and a scale of rewards."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.exact import Counter, Sum
from lrl_jax.settings import check_flag, check_positive
from lrl_jax.spaces import Box

#: Half the distance between bounds from which on they say nothing of the values that occur.
WIDE = 1e6
_MOST = 1e17  # rows with larger numbers are left out: float32 cannot add their squares up


def without_bounds(space: Box) -> np.ndarray:
    """Entries of a flat Box whose bounds are infinite, or too wide to scale by, bool [X]."""
    low, high = (np.asarray(x, np.float64) for x in space.bounds)
    with np.errstate(invalid="ignore"):
        return ~(high - low <= 2 * WIDE)


class RunningMoments(struct.Node):
    """Mean and variance of all rows so far, in float32.

    Batches are merged as by Chan, Golub and LeVeque (1983), for single rows Welford's method. Mean
    and variance move by ever smaller steps, which float32 alone would round away after some 1e7
    rows: the count is exact, and both are sums that keep the digits of their steps.

    Attributes:
        count: rows.
        mean, variance: [X] each; 0 without rows.
    """

    count: Counter
    mean: Sum
    variance: Sum

    @classmethod
    def zero(cls, dim: int) -> RunningMoments:
        """Before the first row of `dim` numbers."""
        mean, variance = (Sum(*(jnp.zeros(dim, jnp.float32) for _ in range(2))) for _ in range(2))
        return cls(Counter.zero(), mean, variance)

    def std(self, epsilon: jax.Array) -> jax.Array:
        """Root of variance and epsilon, [X]; 1 before the first row."""
        known = (self.count.high | self.count.low) > 0
        variance = jnp.maximum(self.variance.value, 0.0)
        return jnp.where(known, jnp.sqrt(variance + epsilon), 1.0)

    def update(self, x: jax.Array, mask: jax.Array) -> RunningMoments:
        """With more rows; those that are not finite, or of numbers above 1e17, are left out.

        Args:
            x: rows [*B, X].
            mask: which of them count, bool [*B].
        """
        dim = self.mean.high.shape[-1]
        x = x.reshape(-1, dim).astype(jnp.float32)
        mask = mask.reshape(-1) & (jnp.abs(x) < _MOST).all(-1)
        count = self.count.add(mask.sum(dtype=jnp.int32))
        n = mask.sum(dtype=jnp.int32).astype(jnp.float32)
        share = n / jnp.maximum(count.as_float(), 1.0)
        n = jnp.maximum(n, 1.0)

        def mean_of(values):
            return jnp.where(mask[:, None], values, 0.0).sum(0) / n

        # Around the present mean, and then around the batch's: small numbers lose least.
        x = x - self.mean.value
        delta = mean_of(x)
        x = x - delta
        variance = jnp.maximum(mean_of(x**2) - mean_of(x) ** 2, 0.0)
        step = share * (variance - self.variance.value) + share * (1.0 - share) * delta**2
        return RunningMoments(count, self.mean.plus(share * delta), self.variance.plus(step))


class RunningStatistics(struct.Node):
    """What a level keeps of its rows to normalise observations and to scale rewards.

    A part of a learner, for levels of any kind: `of` makes it, `see` and `scaled` use it, `update`
    takes rows in, in a level's `update_statistics`. What is not asked for is None, and its method
    returns what it is given. Rows are stored raw and normalised where they are used.

    Observations lose the mean and are divided by the standard deviation of the rows so far, and
    clipped, as by VecNormalize of Stable-Baselines3 (Raffin et al. 2021); only entries without
    bounds: others can be scaled by theirs, which do not move.

    Rewards are divided by the standard deviation of the discounted return so far of the episode
    that each row is in, and clipped, also as by VecNormalize (from Engstrom et al. 2020) and
    Gymnasium's NormalizeReward. The mean stays: without it, long episodes would pay otherwise.

    Attributes:
        observations: moments of observations, or None.
        normalised: entries that are, bool [X], or None.
        returns: moments of discounted returns, [1], or None.
        settings: clip and epsilon, float32 [] each, if either is asked for.
    """

    observations: RunningMoments | None = None
    normalised: jax.Array | None = None
    returns: RunningMoments | None = None
    settings: dict[str, jax.Array] = struct.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        space: Box,
        *,
        running_normaliser: bool = False,
        reward_scaling: bool = False,
        clip: Any = 10.0,
        epsilon: float = 1e-8,
    ) -> RunningStatistics:
        """Before the first row.

        Args:
            space: of what networks see, flat, [X]: `obs_box` or `feature_box` of a LevelSpec.
            running_normaliser: whether observations are normalised.
            reward_scaling: whether rewards are scaled.
            clip: largest magnitude of what comes out.
            epsilon: added to variances.

        Raises:
            TypeError, ValueError: for settings that are none.
        """
        check_flag("running_normaliser", running_normaliser)
        check_flag("reward_scaling", reward_scaling)
        if not running_normaliser and not reward_scaling:
            return cls()
        if not isinstance(clip, jax.Array):  # a sweep's
            clip = check_positive("clip", clip)
        settings = {"clip": clip, "epsilon": check_positive("epsilon", epsilon)}
        return cls(
            observations=RunningMoments.zero(space.dim) if running_normaliser else None,
            normalised=jnp.asarray(without_bounds(space)) if running_normaliser else None,
            returns=RunningMoments.zero(1) if reward_scaling else None,
            settings={name: jnp.array(x, jnp.float32) for name, x in settings.items()},
        )

    def see(self, x: jax.Array) -> jax.Array:
        """Observations [..., X], normalised to float32."""
        if self.observations is None or self.normalised is None:
            return x
        x, most = x.astype(jnp.float32), self.settings["clip"]
        std = self.observations.std(self.settings["epsilon"])
        normal = jnp.clip((x - self.observations.mean.value) / std, -most, most)
        return jnp.where(self.normalised, normal, x)

    def scaled(self, rew: jax.Array) -> jax.Array:
        """Rewards [...], scaled to float32."""
        if self.returns is None:
            return rew
        most, std = self.settings["clip"], self.returns.std(self.settings["epsilon"])[0]
        return jnp.clip(rew.astype(jnp.float32) / std, -most, most)

    def update(
        self, x: jax.Array, mask: jax.Array, discounted_return: jax.Array | None = None
    ) -> RunningStatistics:
        """With more rows.

        Args:
            x: raw observations, [*B, X].
            mask: rows that count, bool [*B].
            discounted_return: that of the rows, [*B], where rewards are scaled: rows have it with
                needs=("return",).

        Raises:
            ValueError: if it is missing.
        """
        new = self
        if self.observations is not None:
            new = new.replace(observations=self.observations.update(x, mask))
        if self.returns is not None:
            if discounted_return is None:
                raise ValueError(
                    'reward_scaling needs the discounted returns of rows: declare needs=("return",)'
                    " on the level, and pass rows.discounted_return."
                )
            returns = self.returns.update(discounted_return[..., None], mask)
            new = new.replace(returns=returns)
        return new
