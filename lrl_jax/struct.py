"""Pytrees with named fields, in a form that type checkers follow.

`class State(struct.Node)` is what `@flax.struct.dataclass class State` is, but its `replace` is
known to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, dataclass_transform

from flax import struct

__all__ = ["Node", "field", "new"]

T = TypeVar("T")

field = struct.field


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
class Node:
    """Base of frozen dataclasses that are pytrees; fields with `pytree_node=False` are static."""

    def __init_subclass__(cls, **settings: Any):
        super().__init_subclass__()
        struct.dataclass(cls, **settings)

    if TYPE_CHECKING:

        def replace(self, **changes: Any) -> Self:
            """A copy with other values in the fields that are named."""
            ...


def new(cls: type[T], *args: Any, **fields: Any) -> T:
    """A node that holds something else than its fields' types say.

    Types say what a node holds in a program. NumPy arrays on the host, shapes, and specs of how
    arrays are split go by the same names, and this is where they are let in.
    """
    return cls(*args, **fields)
