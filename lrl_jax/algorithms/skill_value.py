"""Value averaged over skills, and start states read off latent ones, for planning within a skill.

A plan of MPPI does not look past the end of a skill. What follows is worth the mean value of a
fresh skill from there; its start is the state that the converter reads off the last latent state
(Gürtler and Martius 2025).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrl_jax import struct
from lrl_jax.algorithms.base import optimised
from lrl_jax.algorithms.masked import shares
from lrl_jax.nets import NormedMLP, TwoHot, apply_function

_OPTIMIZER = optax.chain(optax.clip_by_global_norm(20.0), optax.scale_by_adam())


class SkillValueState(struct.Node):
    """Parameters {"value", "converter"} and the state of their optimiser."""

    params: dict[str, Any]
    opt: Any


@dataclasses.dataclass(frozen=True)
class SkillValue:
    """Two heads on latent states, and how they learn.

    Attributes:
        start_dim: entries D of the features of a start.
        hidden: layers of both.
        two_hot: bins of the value.
        compute_dtype: what they multiply in, see `LatentModel`.
    """

    start_dim: int
    hidden: tuple[int, ...]
    two_hot: TwoHot = TwoHot()
    compute_dtype: str = "float32"

    @property
    def _value_net(self) -> NormedMLP:
        return NormedMLP(self.hidden, self.two_hot.num_bins, zero_last=True)

    @property
    def _converter_net(self) -> NormedMLP:
        return NormedMLP(self.hidden, self.start_dim)

    def init(self, key: jax.Array, latent_dim: int) -> SkillValueState:
        """Create the state for latent states of that size; consumes `key`."""
        key_value, key_converter = jax.random.split(key)
        x, start = (
            jnp.zeros((1, latent_dim), jnp.float32),
            jnp.zeros((1, self.start_dim), jnp.float32),
        )
        params = {
            "value": self._value_net.init(key_value, jnp.concatenate([x, start], -1))["params"],
            "converter": self._converter_net.init(key_converter, x)["params"],
        }
        return SkillValueState(params, _OPTIMIZER.init(params))

    def value(self, params: dict, latent: jax.Array, start: jax.Array) -> tuple[Any, jax.Array]:
        """Value of beginning a fresh skill: logits [..., bins] and the number [...].

        Args:
            params: of the state.
            latent: [..., L].
            start: features of the start, [..., D].
        """
        x = jnp.concatenate([latent, start], -1)
        logits = apply_function(
            self._value_net, params["value"], x, compute_dtype=self.compute_dtype
        )
        return logits, self.two_hot.decode(logits)

    def convert(self, params: dict, latent: jax.Array) -> jax.Array:
        """Features of a start [..., D] at latent states [..., L]."""
        net = self._converter_net
        return apply_function(net, params["converter"], latent, compute_dtype=self.compute_dtype)

    def update(
        self,
        state: SkillValueState,
        latent: jax.Array,
        start: jax.Array,
        targets: jax.Array,
        mask: jax.Array,
        rate: jax.Array,
    ) -> tuple[SkillValueState, dict[str, jax.Array]]:
        """One step of both heads; no gradient reaches the latent states.

        Args:
            state: of `init`.
            latent: [..., L].
            start: features of the parent's state there, [..., D].
            targets: value of a fresh skill from there, [...].
            mask: rows that count, bool [...].
            rate: learning rate, [].

        Returns:
            The state, and scalars for logging.
        """
        latent, start, targets = jax.lax.stop_gradient((latent, start, targets))
        weight = shares(mask)

        def loss_fn(params):
            logits, _ = self.value(params, latent, start)
            value_loss = (self.two_hot.cross_entropy(logits, targets) * weight).sum()
            error = ((self.convert(params, latent) - start) ** 2).mean(-1)
            converter_loss = (error * weight).sum()
            losses = {"skill_value_loss": value_loss, "converter_loss": converter_loss}
            return value_loss + converter_loss, losses

        (_, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        steps: Any
        steps, opt = optimised(_OPTIMIZER, grads, state.opt)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, steps)
        return SkillValueState(params, opt), losses
