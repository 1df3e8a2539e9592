"""Network with one head for each parameter of a Gaussian mixture and of a termination."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrl_jax.nets.mlp import MLP


class MixtureNetwork(nn.Module):
    """Trunk with separate heads, so that compiled code drops the heads a caller does not use.

    Attributes:
        dim: dimension D of the predicted vector.
        n_modes: number J of Gaussians.
        hidden, activation: of the trunk.
        log_std_min, log_std_max: bounds the log std is clipped to.
        termination: whether there is a termination head.
    """

    dim: int
    n_modes: int = 4
    hidden: tuple[int, ...] = (128, 128)
    activation: str | Callable = "relu"
    log_std_min: float = -10.0
    log_std_max: float = 10.0
    termination: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array | None]:
        """Map `[..., in]` to the mixture's parameters.

        Returns:
            dict with `mean` and `log_std` [..., J, D], `log_weight` [..., J] (normalised) and
            `term_logit` [...] (None without a termination head).
        """
        h = MLP(self.hidden, None, self.activation, name="trunk")(x)
        shape = (*x.shape[:-1], self.n_modes, self.dim)
        size = self.n_modes * self.dim
        mean = nn.Dense(size, name="mean")(h).reshape(shape)
        log_std = nn.Dense(size, name="log_std")(h).reshape(shape)
        log_std = jnp.clip(log_std, self.log_std_min, self.log_std_max)
        if self.n_modes > 1:
            log_weight = jax.nn.log_softmax(nn.Dense(self.n_modes, name="logits")(h))
        else:
            log_weight = jnp.zeros(shape[:-1], mean.dtype)
        out = {"mean": mean, "log_std": log_std, "log_weight": log_weight}
        term_logit = nn.Dense(1, name="termination")(h)[..., 0] if self.termination else None
        return {**out, "term_logit": term_logit}
