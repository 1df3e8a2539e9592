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
        """Words of 32 bits that the field takes; entries of 8 and 16 bits share a word."""
        return -(-math.prod(self.shape) * np.dtype(jnp.dtype(self.dtype)).itemsize // 4)

    @property
    def stop(self) -> int:
        """Word after the field's last."""
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


def _to_words(x: jax.Array, n_words: int) -> jax.Array:
    """Entries [n, k] as words [n, n_words]."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    per_word = 4 // x.dtype.itemsize
    if per_word > 1:
        x = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        x = jnp.pad(x, ((0, 0), (0, n_words * per_word - x.shape[1])))
        x = x.reshape(len(x), n_words, per_word)
    return jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(len(x), n_words)


def _from_words(words: jax.Array, field: Field) -> jax.Array:
    """Undo `_to_words`: [..., n_words] to [..., *shape]."""
    dtype = jnp.dtype(field.dtype)
    raw = jnp.dtype(jnp.uint8) if dtype == jnp.bool_ else dtype
    lead, size = words.shape[:-1], math.prod(field.shape)
    if raw.itemsize == 8:
        words = words.reshape(*lead, size, 2)
    entries = jax.lax.bitcast_convert_type(words, f"uint{8 * raw.itemsize}")
    n_entries = 4 * field.n_words // raw.itemsize
    entries = entries.reshape(*lead, n_entries)[..., :size]
    value = entries != 0 if dtype == jnp.bool_ else _bits_as(entries, dtype)
    return value.reshape(*lead, *field.shape)


def _bits_as(entries: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return entries if entries.dtype == dtype else jax.lax.bitcast_convert_type(entries, dtype)


def check_fields(layout: tuple[Field, ...], rows: Mapping[str, Any]) -> None:
    """Raise a ValueError for missing, unknown or wrongly shaped fields."""
    names = {field.name for field in layout}
    if set(rows) != names:
        raise ValueError(
            f"rows have fields {sorted(rows)}, the buffer stores {sorted(names)}: "
            f"missing {sorted(names - set(rows))}, unknown {sorted(set(rows) - names)}."
        )
    for field in layout:
        shape = jnp.shape(rows[field.name])
        if shape[1:] != field.shape:
            raise ValueError(
                f"field {field.name!r} has shape {shape}, expected [n, *{field.shape}]."
            )


def pack(layout: tuple[Field, ...], rows: Mapping[str, Any]) -> jax.Array:
    """Pack rows whose fields are [n, *shape] into uint32 [n, W].

    Raises:
        ValueError: for missing, unknown or wrongly shaped fields.
    """
    check_fields(layout, rows)
    words = []
    for field in layout:
        value = jnp.asarray(rows[field.name]).astype(field.dtype)
        flat = value.reshape(value.shape[0], math.prod(field.shape))
        words.append(_to_words(flat, field.n_words))
    return jnp.concatenate(words, axis=-1)


def unpack(layout: tuple[Field, ...], words: jax.Array) -> dict[str, jax.Array]:
    """Undo `pack`: uint32 [..., W] to a dict of [..., *shape]."""
    return {
        field.name: _from_words(words[..., field.start : field.stop], field) for field in layout
    }


def unpack_on_host(layout: tuple[Field, ...], words: np.ndarray) -> dict[str, np.ndarray]:
    """What `unpack` does, in NumPy: nothing is recompiled for each number of rows."""
    rows = {}
    for field in layout:
        dtype = np.dtype(jnp.dtype(field.dtype))
        lead, size = words.shape[:-1], math.prod(field.shape)
        part = np.ascontiguousarray(words[..., field.start : field.stop])
        value = part.view(np.uint8).reshape(*lead, 4 * field.n_words)[..., : size * dtype.itemsize]
        value = np.ascontiguousarray(value)
        value = value != 0 if dtype == np.bool_ else value.view(dtype)
        rows[field.name] = value.reshape(*lead, *field.shape)
    return rows
