"""Rows: the semi-MDP transitions that levels decide on, store and learn from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lrl_jax import struct


class Control(struct.Node):
    """Where an instance is in its stretch of control: since the level above sent the present input.

    Shapes are those of one instance. "Above" is the level above, whose observation map may differ.
    """

    steps: jax.Array  # [] int32, rows of this stretch before the decision
    start_obs: Any  # [*its obs shape] what the level above decided the input on
    above_obs: Any  # [*its obs shape] what it sees at the decision (in `after_transition`: now)
    above_obs_next: Any = None  # [*its obs shape] what it sees at the row's end; in rows only


class Row(struct.Node):
    """A semi-MDP transition: what a level sees between two of its decisions.

    Shapes are those of one instance; sampled rows have leading axes. `row["name"]` reads what the
    level stored itself, or a field.
    """

    obs: Any  # [*obs_shape] mapped observation that was decided on
    level_input: Any  # [*input shape], or [0] without an input
    act: jax.Array  # [*action shape] as decided, not clipped
    rew: jax.Array  # [] float32, accumulated reward
    obs_next: Any  # [*obs_shape] mapped, the true final one at an episode's end
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool; in views also where a reset or unstored ticks follow
    elapsed_env_steps: jax.Array  # [] int32
    n_steps_in_control: jax.Array  # [] int32, rows of this stretch of control, this one included
    hands_back: jax.Array  # [] bool, control went up after it: by itself or at an episode's end
    signals: dict[str, jax.Array] = struct.field(default_factory=dict)  # [] float32, accumulated
    control: Control | None = None  # with needs=("control",)
    #: [] float32, with needs=("return",): of its episode's rows up to this one, the earlier ones
    #: discounted: G = rew + (discount of a row) * (G of the row before)
    discounted_return: Any = None
    stored: dict[str, Any] = struct.field(default_factory=dict)  # what the level stored itself
    id: Any = None  # opaque: where the row is stored

    def __getitem__(self, name: str) -> Any:
        return self.stored[name] if name in self.stored else getattr(self, name)

    @property
    def done(self) -> jax.Array:
        """[] bool, terminated or truncated."""
        return self.terminated | self.truncated


#: Fields of every row; levels cannot store anything under these names.
FIELDS = frozenset(f.name for f in dataclasses.fields(Row))
RESERVED = FIELDS | {"done", "instance", "first", "actor_version"}

_PLAIN = (
    "obs",
    "level_input",
    "act",
    "rew",
    "obs_next",
    "terminated",
    "truncated",
    "elapsed_env_steps",
)
_HIDDEN = {"n_steps_in_control": "_n_steps_in_control", "hands_back": "_hands_back"}
N_STEPS = _HIDDEN["n_steps_in_control"]
# Running number of a row's first child, and how many there were.
FIRST_CHILD, N_CHILDREN = "_first_child", "_n_children"


def to_fields(row: Row) -> dict[str, Any]:
    """A row as fields of a buffer."""
    fields = {name: getattr(row, name) for name in _PLAIN}
    fields |= {hidden: getattr(row, name) for name, hidden in _HIDDEN.items()}
    fields |= {f"signals/{name}": x for name, x in row.signals.items()}
    if row.control is not None:
        parts = dataclasses.fields(Control)
        fields |= {f"control/{f.name}": getattr(row.control, f.name) for f in parts}
    if row.discounted_return is not None:
        fields["discounted_return"] = row.discounted_return
    return fields | row.stored


def from_fields(fields: dict[str, Any], ids: Any = None) -> Row:
    """Undo `to_fields`; what a plain buffer of transitions lacks is filled in as for one level."""
    fields = {name: x for name, x in fields.items() if name not in (FIRST_CHILD, N_CHILDREN)}
    taken: dict[str, Any] = {}
    like = fields["terminated"]
    ones = jax.numpy.ones(like.shape, jax.numpy.int32)
    for name in _PLAIN:
        default = {"level_input": ones[..., None][..., :0], "elapsed_env_steps": ones}.get(name)
        taken[name] = fields.pop(name, default)
    taken["n_steps_in_control"] = fields.pop(N_STEPS, ones)
    taken["discounted_return"] = fields.pop("discounted_return", None)
    taken["hands_back"] = fields.pop(_HIDDEN["hands_back"], like | taken["truncated"])
    signals, control, own = {}, {}, {}
    for name, x in fields.items():
        head, _, tail = name.partition("/")
        target = {"signals": signals, "control": control}.get(head if tail else "", own)
        target[tail if target is not own else name] = x
    return Row(
        **taken,
        signals=signals,
        control=Control(**control) if control else None,
        stored=own,
        id=ids,
    )
