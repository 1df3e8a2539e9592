"""Action values split into the state's value and advantages (Wang et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.mlp import MLP


class DuelingMLP(nn.Module):
    """Q(x, a) = V(x) + A(x, a) - mean over a of A(x, a), equation 9 of Wang et al. 2016.

    The streams share all hidden layers except the last.

    Attributes:
        n_actions: A.
        hidden, activation: of the hidden layers; without any, both streams are linear.
    """

    n_actions: int
    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"

    @nn.compact
    def streams(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map [..., X] to the value [...] and the advantages [..., A], whose mean is 0."""
        shared, last = self.hidden[:-1], self.hidden[-1:]
        x = MLP(shared, None, self.activation, name="shared")(x) if shared else x
        value = MLP(last, 1, self.activation, name="value")(x)[..., 0]
        advantage = MLP(last, self.n_actions, self.activation, name="advantage")(x)
        return value, advantage - jnp.mean(advantage, -1, keepdims=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., X] to action values [..., A]."""
        value, advantage = self.streams(x)
        return value[..., None] + advantage
