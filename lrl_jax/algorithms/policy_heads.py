"""Distributions over actions whose parameters a network puts out: Gaussian and categorical.

Features come first and the batch last, see lrl_jax.nets.orthogonal_mlp.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.algorithms.base import Scale, from_unit
from lrl_jax.spaces import Box, Discrete, Space


@dataclasses.dataclass(frozen=True)
class CategoricalHead:
    """Categorical distribution over a Discrete space.

    Attributes:
        space: A actions.
    """

    space: Discrete

    @property
    def out_dim(self) -> int:
        """Outputs of the network: A logits."""
        return self.space.n

    @property
    def action_dim(self) -> int:
        """Entries of an encoded action."""
        return 1

    def init(self, log_std_start: float) -> jax.Array:
        """Parameters besides the network's outputs: none, [0]."""
        del log_std_start
        return jnp.zeros(0, jnp.float32)

    def sample(
        self, out: jax.Array, log_std: jax.Array, key: jax.Array, explores: bool | jax.Array
    ) -> jax.Array:
        """Action [] for logits [A]; the most probable one unless `explores`. Consumes `key`."""
        del log_std
        best = jnp.argmax(out).astype(self.space.dtype)
        if explores is False:
            return best
        # One uniform number through the inverse of the cumulative probabilities.
        cumulative = jnp.cumsum(jax.nn.softmax(out))
        drawn = (cumulative <= jax.random.uniform(key, (), jnp.float32) * cumulative[-1]).sum()
        drawn = jnp.minimum(drawn, self.space.n - 1).astype(self.space.dtype)
        return jnp.where(explores, drawn, best)

    def encode(self, action: jax.Array) -> jax.Array:
        """Actions [*B] as float32 [*B, 1]."""
        return action.astype(jnp.float32)[..., None]

    def log_prob_entropy(
        self, out: jax.Array, log_std: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probability and entropy.

        Args:
            out: logits [A, *B].
            log_std: of `init`.
            action: encoded actions, features first, [1, *B].

        Returns:
            [*B] float32 each, in nats.
        """
        del log_std
        log_p = jax.nn.log_softmax(out, axis=0)
        index = jnp.arange(self.space.n, dtype=jnp.float32).reshape(-1, *[1] * (out.ndim - 1))
        log_prob = jnp.where(index == action, log_p, 0.0).sum(0)
        return log_prob, -(jnp.exp(log_p) * log_p).sum(0)


@dataclasses.dataclass(frozen=True)
class GaussianHead:
    """Gaussian whose standard deviation does not depend on the state, over a Box.

    Entries with finite bounds are in units of them: -1 and 1 are the bounds. Draws are not clipped:
    the density is that of the action as decided.

    Attributes:
        space: D numbers.
    """

    space: Box

    @property
    def out_dim(self) -> int:
        """Outputs of the network: D means."""
        return self.space.dim

    @property
    def action_dim(self) -> int:
        """Entries of an encoded action."""
        return self.space.dim

    def init(self, log_std_start: float) -> jax.Array:
        """Log of the standard deviation in units of the bounds, float32 [D]."""
        return jnp.full(self.space.dim, log_std_start, jnp.float32)

    def sample(
        self, out: jax.Array, log_std: jax.Array, key: jax.Array, explores: bool | jax.Array
    ) -> jax.Array:
        """Action [*shape] for means [D]; the mean unless `explores`. Consumes `key`."""
        if explores is not False:
            noise = jnp.exp(log_std) * jax.random.normal(key, out.shape, jnp.float32)
            out = out + jnp.where(explores, noise, 0.0)
        return from_unit(self.space, out)

    def encode(self, action: jax.Array) -> jax.Array:
        """Actions [*B, *shape] in units of the bounds, float32 [*B, D]."""
        lead = action.shape[: action.ndim - len(self.space.shape)]
        return Scale.of(self.space)(action.reshape(*lead, self.space.dim))

    def log_prob_entropy(
        self, out: jax.Array, log_std: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Log of the density in units of the bounds, and its entropy.

        Args:
            out: means [D, *B].
            log_std: of `init`.
            action: encoded actions, features first, [D, *B].

        Returns:
            [*B] float32 each, in nats.
        """
        scale = log_std.reshape(-1, *[1] * (out.ndim - 1))
        error = (action - out) * jnp.exp(-scale)
        log_prob = -0.5 * (error**2).sum(0) - log_std.sum() - 0.5 * len(log_std) * _LOG_2PI
        entropy = log_std.sum() + 0.5 * len(log_std) * (1.0 + _LOG_2PI)
        return log_prob, jnp.broadcast_to(entropy, log_prob.shape)


_LOG_2PI = math.log(2.0 * np.pi)

PolicyHead = CategoricalHead | GaussianHead


def policy_head(space: Space) -> PolicyHead:
    """The distribution that suits an action space."""
    return CategoricalHead(space) if isinstance(space, Discrete) else GaussianHead(space)
