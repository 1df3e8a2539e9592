"""Rows as words of 32 bits: one scatter writes a row, one gather reads it, no bit changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """Name, shape and dtype of one field of a row, and where its words start."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def n_words(self) -> int:
        """Words of 32 bits that the field takes."""
        per_entry = 2 if np.dtype(jnp.dtype(self.dtype)).itemsize == 8 else 1
        return math.prod(self.shape) * per_entry

    @property
    def stop(self) -> int:
        """Word behind the field's last."""
        return self.start + self.n_words


def make_layout(example: Mapping[str, Any]) -> tuple[Field, ...]:
    """Lay out the fields of one row; `example` maps names to arrays or ShapeDtypeStructs."""
    fields, start = [], 0
    for name, value in example.items():
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            raise TypeError(f"field {name!r} has dtype {value.dtype}: store plain numbers.")
        field = Field(name, tuple(value.shape), jnp.dtype(value.dtype).name, start)
        fields.append(field)
        start = field.stop
    return tuple(fields)


def _to_words(x: jax.Array) -> jax.Array:
    size = x.dtype.itemsize
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if size >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * size}").astype(jnp.uint32)


def _from_words(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if dtype == jnp.bool_:
        return words != 0
    if dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(words, dtype)
    return jax.lax.bitcast_convert_type(words.astype(f"uint{8 * dtype.itemsize}"), dtype)


def pack(layout: tuple[Field, ...], rows: Mapping[str, Any]) -> jax.Array:
    """Pack rows whose fields are [n, *shape] into uint32 [n, W].

    Raises:
        ValueError: for missing, unknown or wrongly shaped fields.
    """
    names = {field.name for field in layout}
    if set(rows) != names:
        raise ValueError(
            f"rows have fields {sorted(rows)}, the buffer stores {sorted(names)}: "
            f"missing {sorted(names - set(rows))}, unknown {sorted(set(rows) - names)}."
        )
    words = []
    for field in layout:
        value = jnp.asarray(rows[field.name])
        if value.shape[1:] != field.shape:
            raise ValueError(
                f"field {field.name!r} has shape {value.shape}, expected [n, *{field.shape}]."
            )
        value = value.astype(field.dtype)
        words.append(_to_words(value).reshape(value.shape[0], field.n_words))
    return jnp.concatenate(words, axis=-1)


def unpack(layout: tuple[Field, ...], words: jax.Array) -> dict[str, jax.Array]:
    """Undo `pack`: uint32 [..., W] to a dict of [..., *shape]."""
    rows = {}
    for field in layout:
        dtype = jnp.dtype(field.dtype)
        part = words[..., field.start : field.stop]
        pair = (2,) if dtype.itemsize == 8 else ()
        rows[field.name] = _from_words(part.reshape(*words.shape[:-1], *field.shape, *pair), dtype)
    return rows


def unpack_on_host(layout: tuple[Field, ...], words: np.ndarray) -> dict[str, np.ndarray]:
    """What `unpack` does, in NumPy: nothing is compiled anew for each number of rows."""
    rows = {}
    for field in layout:
        dtype = np.dtype(jnp.dtype(field.dtype))
        part = np.ascontiguousarray(words[..., field.start : field.stop])
        if dtype == np.bool_:
            value = part != 0
        elif dtype.itemsize >= 4:
            value = part.view(dtype)
        else:
            value = part.astype(f"uint{8 * dtype.itemsize}").view(dtype)
        rows[field.name] = value.reshape(*words.shape[:-1], *field.shape)
    return rows
