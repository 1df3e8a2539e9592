"""The multilayer perceptron that the other networks are built on."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from lrl_jax.settings import check_int

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": lambda x: x * nn.tanh(nn.softplus(x)),
    "leaky_relu": nn.leaky_relu,
}


def activation_fn(activation: str | Callable) -> Callable[[jax.Array], jax.Array]:
    """Look an activation up by name; a callable is returned as it is.

    Raises:
        ValueError: for a name that is not in the table.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: use one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


def check_hidden(hidden) -> tuple[int, ...]:
    """Check the widths of hidden layers and return them as a tuple.

    Raises:
        ValueError: if a width is not a positive integer.
    """
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    return tuple(check_int("each of the hidden widths", h, 1) for h in hidden)


class MLP(nn.Module):
    """Dense layers, each followed by the activation.

    Attributes:
        hidden: widths of the hidden layers.
        out_dim: width of the linear output layer; None for none.
        activation: name of an activation, or a function.
    """

    hidden: tuple[int, ...] = (128, 128)
    out_dim: int | None = None
    activation: str | Callable = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., in]` to `[..., out_dim]` (or the last hidden width)."""
        act = activation_fn(self.activation)
        for i, width in enumerate(self.hidden):
            x = act(nn.Dense(width, name=f"dense_{i}")(x))
        if self.out_dim is not None:
            x = nn.Dense(self.out_dim, name="out")(x)
        return x
