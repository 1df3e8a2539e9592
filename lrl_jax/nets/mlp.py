"""The multilayer perceptron that the other networks are built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from lrl_jax.settings import check_hashable, check_int, check_tuple, plain

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
    """Look an activation up by name; a callable is returned unchanged.

    Raises:
        ValueError: for a name that is not in the table.
    """
    if callable(activation):
        return check_hashable("activation", activation)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: use one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


def check_hidden(hidden: Any, name: str = "hidden") -> tuple[int, ...]:
    """Check the widths of hidden layers, one or several, and return them as a tuple.

    Raises:
        ValueError: if a width is not a positive integer.
        TypeError: if they are not a tuple.
    """
    if isinstance(plain(name, hidden), int):
        hidden = (hidden,)
    return check_tuple(name, hidden, check_int, 1)


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
