"""The level protocol: one layer of a hierarchy, written for one environment instance."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lrl_jax.spaces import Box, SameAsAction, Space


@dataclasses.dataclass(frozen=True)
class LevelSpec:
    """What a level is told about its place in the hierarchy.

    Attributes:
        index: position, 0 is the highest.
        obs_shape: shape of the mapped observation of one instance.
        action_space: what the level decides: the input space of the level below, or the
            environment's action space for the last level.
        input_space: what the level above sends, None for the first.
        parent: the spec of the level above, None for the first.
        n_env_instances: number of instances.
        decision_env_steps: environment steps that one of the level's decisions lasts if nothing
            cuts it short: the product of the control intervals below; None if a level below
            decides for itself when to hand back.
        obs_space: bounds of the mapped observation, infinite where they are not known; None for
            infinite bounds.
        parent_latent: space of the latent states that the level above plans in; None if it does
            not. Known to `init_learner` only.
    """

    index: int
    obs_shape: tuple[int, ...]
    action_space: Space
    input_space: Space | None = None
    parent: LevelSpec | None = None
    n_env_instances: int = 1
    decision_env_steps: int | None = 1
    obs_space: Box | None = None
    parent_latent: Box | None = None

    @property
    def obs_box(self) -> Box:
        """The mapped observation as a flat Box."""
        dim = math.prod(self.obs_shape)
        return self.obs_space or Box(-math.inf, math.inf, (dim,))


@struct.dataclass
class Control:
    """Where an instance is in its stretch of control, for levels with `uses_parent_obs`.

    Shapes are those of one instance.
    """

    n_steps: jax.Array  # [] int32, rows of this stretch so far
    start_obs: jax.Array  # [*parent's obs shape] what the level above decided the input on
    parent_obs: jax.Array  # [*parent's obs shape] what it would see now


@struct.dataclass
class Row:
    """A semi-MDP transition: what a level sees between two of its decisions.

    Shapes are those of one instance; sampled rows have a leading batch axis. `row["k"]` reads a
    field of the row or one of the level's own (`extra`).
    """

    obs: jax.Array  # [*obs_shape] mapped observation that was decided on
    level_input: Any  # [*input shape], or [0] without an input
    act: jax.Array  # [*action shape] as decided, not clipped
    rew: jax.Array  # [] float32, accumulated reward
    obs_next: jax.Array  # [*obs_shape] mapped, the true final one at an episode's end
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool
    elapsed_env_steps: jax.Array  # [] int32
    n_steps_in_control: jax.Array  # [] int32, rows of this stretch of control, this one included
    control: Any = None  # Control at the decision, for levels with `uses_parent_obs`
    parent_obs_next: Any = None  # [*parent's obs shape] what the level above sees now, for those
    extra: dict[str, jax.Array] = struct.field(default_factory=dict)

    def __getitem__(self, name: str) -> jax.Array:
        return self.extra[name] if name in self.extra else getattr(self, name)

    @property
    def done(self) -> jax.Array:
        """[] bool, terminated or truncated."""
        return self.terminated | self.truncated


def as_rows(fields: dict[str, jax.Array]) -> Row:
    """Turn rows gathered from a buffer, a dict of [B, ...], back into a Row.

    Fields of the level's own go to `extra`; `n_steps_in_control` is 0 unless it is one of them.
    """
    apart = {"extra", "n_steps_in_control", "control", "parent_obs_next"}
    core = {f.name for f in dataclasses.fields(Row)} - apart
    in_control = fields.get("n_steps_in_control", jnp.zeros_like(fields["elapsed_env_steps"]))
    return Row(
        **{name: fields[name] for name in core},
        n_steps_in_control=in_control,
        extra={name: value for name, value in fields.items() if name not in core},
    )


class Level:
    """Base of all levels: every method has a default but `act`.

    A level is a frozen, hashable dataclass of settings. It is written for one instance of the
    environment; the hierarchy maps it over instances, masks, accumulates and stores.

    Class attributes that a level may turn into fields (the base is no dataclass itself, so that
    they do not come before a level's own fields):
        buffer_size: rows its replay buffer holds over all instances; 0 for none.
        update_interval, n_updates: `n_updates` calls of `learn` are owed for every
            `update_interval` new rows of the level, all instances together.
        control_interval: rows after which control goes back to the level above; None for never.
        chunk_size: how the hierarchy spares inactive instances the work of `act`. 0: cheap,
            computed for all and selected; None: skipped while no instance is active; a number:
            active instances are gathered and processed that many at a time.
        uses_parent_obs: whether `act` gets `control=Control(...)` and rows hold `control` and
            `parent_obs_next`: observations as the level above sees them, whose maps may differ.
        is_blind: whether decisions depend on the learner and the key alone, so that a host loop may
            draw those of many ticks ahead.
    """

    buffer_size: int = 0
    update_interval: int = 1
    n_updates: int = 0
    control_interval: int | None = None
    chunk_size: int | None = None
    uses_parent_obs: bool = False
    is_blind: bool = False

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "act" in cls.__dict__ and "is_blind" not in cls.__dict__:
            cls.is_blind = False  # another way of acting may look

    #: A costly level may define `prepare`, with the arguments of `act`, which returns (action,
    #: memory, needs_act): the cheap part of a decision, run for all instances that decide. Only
    #: where needs_act is true does `act` follow, with the memory that `prepare` returned.
    prepare: Callable[..., tuple[Any, Any, jax.Array]] | None = None

    def input_space(self) -> Space | SameAsAction | None:
        """Space of what the level above sends; None if the level needs no input."""
        return None

    def check(self, spec: LevelSpec) -> None:
        """Raise a ValueError or TypeError if the level does not fit its place."""

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> Any:
        """Create what is shared over instances; may consume `key`."""
        return ()

    def check_buffer(self, learner: Any, capacity: int, n_env_instances: int) -> None:
        """Raise a ValueError if rings of `capacity` rows, one an instance, are too small."""

    def latent_space(self, learner: Any) -> Box | None:
        """Space of the latent states that the level plans in; None if it does not."""
        return None

    def init_memory(self, learner: Any) -> Any:
        """Create what one instance remembers within an episode."""
        return ()

    def observe_env_steps(self, learner: Any, n_total_env_steps: jax.Array) -> Any:
        """Tell the learner the total of environment steps, float32; once a training tick."""
        return learner

    def act(self, learner, memory, obs, level_input, key, *, parent, training) -> Any:
        """Decide. Returns (action, memory); consumes `key`. `training` is a Python bool.

        Levels with `uses_parent_obs` also get the keyword `control`.
        """
        raise TypeError(f"{type(self).__name__} does not define act.")

    def after_transition(self, learner, memory, row: Row):
        """See the level's own finished row. Returns (memory, hand_back), hand_back a bool."""
        if self.control_interval is None:
            return memory, jnp.zeros((), bool)
        return memory, row.n_steps_in_control >= self.control_interval

    def row_fields(self, memory, row: Row) -> dict[str, jax.Array]:
        """More fields to store with a row; `memory` is that of before `after_transition`."""
        return {}

    def reward(self, learner, parent, rows: Row) -> jax.Array:
        """Reward [B] of sampled rows, recomputed at each sampling; default: as stored."""
        return rows.rew

    def ready(self, learner: Any) -> Any:
        """Whether updates are made now; those owed are dropped else, as during a warm up."""
        return True

    def learn(self, learner, buffer, key, *, parent):
        """Make one update. Returns (learner, metrics), metrics a dict of scalars."""
        return learner, {}


@functools.cache
def _with_defaults(cls: type) -> type:
    return type(cls.__name__, (cls, Level), {"__module__": cls.__module__})


def as_level(level: Any) -> Any:
    """Give a level that does not inherit from Level the defaults of the protocol.

    Raises:
        TypeError: if it is no frozen dataclass or has no `act`.
    """
    name = type(level).__name__
    if isinstance(level, type) or not dataclasses.is_dataclass(level):
        raise TypeError(f"a level is an instance of a frozen dataclass, got {level!r}.")
    if not level.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{name} is not frozen: declare it with @dataclass(frozen=True).")
    if not callable(getattr(level, "act", None)) or getattr(type(level), "act", None) is Level.act:
        raise TypeError(f"{name} does not define act, the one method a level must have.")
    if not isinstance(level, Level):
        full = object.__new__(_with_defaults(type(level)))
        for field in dataclasses.fields(level):
            object.__setattr__(full, field.name, getattr(level, field.name))
        level = full
    try:
        hash(level)
    except TypeError as error:
        raise TypeError(f"{name} is not hashable ({error}): store tuples, not lists.") from None
    return level
