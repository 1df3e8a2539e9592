"""Levels that do not learn: random, constant, a fixed sequence, and holding an input."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.levels.base import Decision, Level, LevelSpec
from lrl_jax.settings import check_int, plain, put_checked
from lrl_jax.spaces import Box, SameAsAction


class SpecLearner(struct.Node):
    """Learner of a level that learns nothing: its place in the hierarchy (static)."""

    spec: LevelSpec = struct.field(pytree_node=False)


def _freeze(name: str, values: Any) -> Any:
    """Turn lists and arrays into nested tuples of Python numbers."""
    values = plain(name, values)
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        array = np.zeros(0, object)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number or an array of numbers, got {values!r}.")
    return _as_tuples(array.tolist())


def _as_tuples(values: Any) -> Any:
    return tuple(_as_tuples(v) for v in values) if isinstance(values, list) else values


def _check_action(name: str, value: np.ndarray, spec: LevelSpec) -> None:
    """Refuse actions of another shape, kind or range than the action space's."""
    space = spec.action_space
    if value.shape != space.shape:
        raise ValueError(
            f"{name} at level {spec.index} has actions of shape {value.shape}, but the level below "
            f"(or the environment) takes {space}: give actions of shape {space.shape}."
        )
    if not np.isfinite(value).all():
        raise ValueError(f"{name} at level {spec.index} has actions that are not finite: {value}.")
    if not isinstance(space, Box) and (value != int(value) or not 0 <= value < space.n):
        raise ValueError(
            f"{name} at level {spec.index} has action {value}, which is not in {space}."
        )


@dataclasses.dataclass(frozen=True)
class RandomLevel(Level):
    """Draws uniformly from a bounded action space at every decision."""

    buffer_size: int = 0
    chunk_size: int | None = 0
    is_blind: ClassVar[bool] = True

    def check(self, spec: LevelSpec) -> None:
        if not spec.action_space.is_bounded:
            raise ValueError(
                f"RandomLevel at level {spec.index} cannot draw uniformly from the unbounded "
                f"{spec.action_space}: bound the space."
            )

    def init_learner(self, key, spec):
        return SpecLearner(spec)

    def act(self, learner, memory, obs, ctx):
        return Decision(learner.spec.action_space.sample(ctx.key), memory)


@dataclasses.dataclass(frozen=True)
class ConstantLevel(Level):
    """Always the same action.

    Attributes:
        action: array of the action space's shape; stored as nested tuples.
    """

    action: Any
    buffer_size: int = 0
    chunk_size: int | None = 0
    is_blind: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, _freeze, ("action",))

    def check(self, spec: LevelSpec) -> None:
        _check_action("ConstantLevel", np.asarray(self.action), spec)

    def init_learner(self, key, spec):
        return SpecLearner(spec)

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.asarray(self.action, learner.spec.action_space.dtype), memory)


@dataclasses.dataclass(frozen=True)
class ActionSequenceLevel(Level):
    """Plays a sequence from the start of each episode, then holds its last action.

    Attributes:
        actions: [T, *action shape]; stored as nested tuples.
        repeat: decisions that each action is played for.
    """

    actions: Any
    repeat: int = 1
    buffer_size: int = 0
    chunk_size: int | None = 0

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, _freeze, ("actions",))
        if not isinstance(self.actions, tuple) or not self.actions:
            raise ValueError(f"actions must be at least one action [T, ...], got {self.actions!r}.")
        put_checked(self, check_int, ("repeat",), 1)

    def check(self, spec: LevelSpec) -> None:
        for action in self.actions:
            _check_action("ActionSequenceLevel", np.asarray(action), spec)

    def init_learner(self, key, spec):
        return SpecLearner(spec)

    def init_memory(self, learner):
        return jnp.zeros((), jnp.int32)  # decisions made in this episode, up to the last action

    def act(self, learner, memory, obs, ctx):
        actions = jnp.asarray(self.actions, learner.spec.action_space.dtype)
        last = len(self.actions) * self.repeat - 1
        return Decision(actions[memory // self.repeat], jnp.minimum(memory + 1, last))


@dataclasses.dataclass(frozen=True)
class ActionRepeatLevel(Level):
    """Holds its input as the action for `control_interval` decisions.

    Its input space is its own action space.
    """

    control_interval: int | None
    buffer_size: int = 0
    chunk_size: int | None = 0

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, check_int, ("control_interval",), 1)

    def input_space(self):
        return SameAsAction()

    def act(self, learner, memory, obs, ctx):
        return Decision(ctx.level_input, memory)
