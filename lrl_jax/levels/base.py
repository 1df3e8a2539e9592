"""The level protocol: one layer of a hierarchy, written for one environment instance."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.buffers import Control, Replay, Row
from lrl_jax.env_spec import GoalIndices
from lrl_jax.settings import (
    check_flag,
    check_float,
    check_hashable,
    check_int,
    check_steps,
    optional,
    put_checked,
)
from lrl_jax.spaces import Box, SameAsAction, Space

NEEDS = ("control", "children", "return")

#: Names of fields, or entries of dicts, of a learner under which leaves copy settings of the level:
#: numbers that were put there, and values of schedules.
SETTINGS = ("settings", "scheduled")


def check_discount(name: str, value: Any) -> float | str:
    """Return a number in [0, 1], or "gamma"."""
    if isinstance(value, str):
        if value != "gamma":
            raise ValueError(f'{name} is {value!r}: give a number, or "gamma".')
        return value
    return check_float(name, value, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LevelSpec:
    """A level's place in the hierarchy.

    Attributes:
        index: position, 0 is the highest.
        obs_shape: shape of the mapped observation of one instance.
        action_space: what the level decides: the input space of the level below, or the
            environment's action space for the last level.
        input_space: what the level above sends, None for the first.
        n_env_instances: number of instances.
        decision_env_steps: environment steps that one of the level's decisions lasts if nothing
            cuts it short: the product of the control intervals below; None if a level below
            decides for itself when to hand back.
        obs_space: bounds of the mapped observation, of its shape and dtype, infinite where they are
            not known; None for infinite bounds.
        goal_indices: where the parts of a goal-based environment are in the mapped observation.
        latent_space: of the latent states that the level plans in; None if it does not.
        above, below: specs of the neighbours, None at an end. Their neighbours in turn are known
            in the same direction only.
    """

    index: int
    obs_shape: tuple[int, ...]
    action_space: Space
    input_space: Space | None = None
    n_env_instances: int = 1
    decision_env_steps: int | None = 1
    obs_space: Box | None = None
    goal_indices: GoalIndices | None = None
    latent_space: Box | None = None
    above: LevelSpec | None = None
    below: LevelSpec | None = None

    @property
    def obs_box(self) -> Box:
        """The mapped observation as a flat Box."""
        dim = math.prod(self.obs_shape)
        if self.obs_space is None:
            return Box(-math.inf, math.inf, (dim,))
        return Box(self.obs_space.low, self.obs_space.high, (dim,), self.obs_space.dtype)

    @property
    def feature_box(self) -> Box:
        """What networks see of it: a whole number from 0, as of a Discrete, becomes one-hot."""
        space = self.obs_space
        if space is None or space.shape or space.dtype[:5] == "float" or space.low != (0.0,):
            return self.obs_box
        n = space.high[0] + 1
        return Box(-1, 1, (int(n),)) if n <= _MOST_ONE_HOT else self.obs_box


_MOST_ONE_HOT = 4096  # more values are scaled, as other numbers


class Neighbour(struct.Node):
    """A level next to another, to read from.

    Attributes:
        learner: its learner.
        level: the level (static).
    """

    learner: Any
    level: Any = struct.field(pytree_node=False)


class Context(struct.Node):
    """What a method of a level may know in addition to its own state and data.

    Attributes:
        key: typed random key, consumed; None where nothing is to be drawn.
        env_steps: environment steps in train mode so far, summed over instances, float32 [].
        level_input: what the level above sent, [0] without; in `act`, `draft`, `after_transition`.
        explores: whether to explore, bool []: training, and no level above asked for greedy
            behaviour. None in `learn` and `reward`.
        control: where the instance is in its stretch of control; None for level 0, and in `learn`
            and `reward`.
        above, below: the neighbours, None at an end.
        training: the hierarchy's mode (static).
    """

    key: Any
    env_steps: jax.Array
    level_input: Any = None
    explores: Any = None
    control: Control | None = None
    above: Neighbour | None = None
    below: Neighbour | None = None
    training: bool = struct.field(pytree_node=False, default=True)


class Decision(struct.Node):
    """What `act` and `draft` return.

    Attributes:
        action: of the shape of the level's action space.
        memory: of one instance, of the structure of `init_memory`.
        store: arrays that are kept with the row, read as `row["name"]`; always the same names.
        greedy_below: bool [], or False: the levels below act without exploration until this row
            closes.
    """

    action: Any
    memory: Any
    store: dict[str, Any] = struct.field(default_factory=dict)
    greedy_below: Any = False


class LevelLike(Protocol):
    """What a hierarchy takes as a level: whatever decides; `Level` has all else."""

    def act(self, learner: Any, memory: Any, obs: Any, ctx: Any, /) -> Decision:
        """Decide."""
        ...


class Level:
    """Base of all levels: every method except `act` has a default.

    A level is a frozen, hashable dataclass of settings. It is written for one instance of the
    environment; the hierarchy maps it over instances, masks, accumulates, stores and samples.

    The attributes are class attributes, which a level may turn into fields. The base is no
    dataclass itself, so that they do not come before a level's own fields.

    Attributes:
        buffer_size: rows its replay buffer holds over all instances; 0 for none.
        rollout_length: for on-policy levels, instead of a buffer_size: an update falls due every
            `rollout_length` decisions of nominal length, at a tick that no random draw decides, and
            the ring holds that many rows per instance.
        update_interval, n_updates: `n_updates` calls of `learn` are owed for every
            `update_interval` new rows of the level, summed over instances; on-policy levels make
            `n_updates` each time.
        learn_from, learn_until: environment steps; updates owed outside are dropped.
        control_interval: rows after which control goes back to the level above; None for never.
        chunk_size: how the hierarchy avoids the work of `act` for inactive instances. 0: `act` is
            cheap, computed for all and selected; None: skipped while no instance is active; a
            number: active instances are gathered and processed in chunks of this size. A level
            with `candidates` that leaves it None gets chunks that fill the device.
        candidates: candidates that a decision compares, which pass through networks together; 0
            for a level that does not plan.
        needs: what rows keep besides the common fields: "control" (a `Control`), "children" (the
            rows that the level below closes inside), "return" (the discounted return so far).
        reward_discount: a reward i environment steps after the decision counts that to the power
            of i in the row's accumulated reward and signals; "gamma" takes the level's own.
        stagger: first training episodes are cut short by random multiples of a decision's length,
            so that instances do not go through their episodes in lockstep.
        is_blind: whether decisions depend on the learner and the key alone, so that a host loop may
            draw those of many ticks ahead.
    """

    buffer_size: int = 0
    rollout_length: Any = None
    update_interval: int = 1
    n_updates: int = 0
    learn_from: Any = 0.0
    learn_until: Any = math.inf
    control_interval: int | None = None
    chunk_size: int | None = None
    candidates: Any = 0
    needs: tuple[str, ...] = ()
    reward_discount: Any = 1.0
    stagger: bool = False
    is_blind: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "act" in cls.__dict__ and "is_blind" not in cls.__dict__:
            cls.is_blind = False  # another way of acting may look

    def __post_init__(self):
        """Check those of the attributes above that are fields; scalars become Python's.

        A level that overrides `__post_init__` calls this one in it. The hierarchy checks the
        attributes of every level again.
        """
        own = {f.name for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        for check, names, *bounds in (
            (check_int, ("buffer_size", "n_updates"), 0),
            (check_int, ("update_interval",), 1),
            (optional(check_int), ("control_interval", "rollout_length"), 1),
            (optional(check_int), ("chunk_size",), 0),
            (check_steps, ("learn_from", "learn_until")),
            (check_flag, ("stagger",)),
            (check_discount, ("reward_discount",)),
        ):
            put_checked(self, check, [name for name in names if name in own], *bounds)

    def input_space(self) -> Space | SameAsAction | None:
        """Space of what the level above sends; None if the level needs no input."""
        return None

    def latent_space(self, spec: LevelSpec) -> Box | None:
        """Space of the latent states that the level plans in; None if it does not."""
        return None

    def check(self, spec: LevelSpec) -> None:
        """Raise a ValueError or TypeError if the level does not fit its place.

        Asked when the hierarchy is built, for one instance, and when a state is made.
        """

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> Any:
        """Create what is shared over instances; may consume `key`.

        Numbers that should be swept under vmap go in as float32 leaves. Those that copy settings
        of the level go under a field or a dict's entry named `settings` (`scheduled` for current
        values of schedules): when a learner is kept for another level, these leaves take the new
        level's values.
        """
        return ()

    def init_memory(self, learner: Any) -> Any:
        """Create what one instance remembers within an episode."""
        return ()

    def act(self, learner: Any, memory: Any, obs: Any, ctx: Context) -> Decision:
        """Decide. The one method that a level must have."""
        raise TypeError(f"{type(self).__name__} does not define act.")

    #: A costly level may define `draft(learner, memory, obs, ctx)`, the cheap first half of a
    #: decision, which returns (Decision, memory, needs_act). Where needs_act is false the Decision
    #: is final; elsewhere `act` follows, with that memory and the same key.
    draft: Any = None

    #: A level that plans may define `planned_states(learner, memory, obs, level_input)`: latent
    #: states [H + 1, D] that its kept plan leads to from `obs`, for pictures.
    planned_states: Any = None

    def after_transition(self, learner: Any, memory: Any, row: Row, ctx: Context) -> Any:
        """See the level's own finished row.

        Returns:
            (memory, hand_back), hand_back a bool [], or (memory, hand_back, store): more arrays to
            keep with the row.
        """
        if self.control_interval is None:
            return memory, jnp.zeros((), bool)
        return memory, row.n_steps_in_control >= self.control_interval

    def reward(self, learner: Any, rows: Row, ctx: Context) -> jax.Array:
        """Reward [B] of sampled rows, recomputed at each sampling; default: as accumulated."""
        return rows.rew

    def learn(self, learner: Any, replay: Replay, ctx: Context) -> tuple[Any, dict[str, Any]]:
        """Make one update. Returns (learner, metrics), metrics a dict of scalars."""
        return learner, {}

    #: A level with running statistics, such as a normaliser of observations, may define
    #: `update_statistics(learner, rows, mask, ctx) -> learner`. Where updates fall due, also while
    #: none are made before `learn_from`, it is given all rows since the last time, each once, in
    #: pieces [L, instances] as they were stored, with a mask, bool. Off-policy that is before the
    #: updates; on-policy after them, so that the rows that are learned from are seen as they were
    #: when they were decided on. Frozen levels and eval mode give no rows.
    update_statistics: Any = None

    def row_discount(self, learner: Any, elapsed_env_steps: jax.Array) -> jax.Array:
        """What the return before a row counts after it, for needs=("return",), [...].

        Args:
            learner: of the level.
            elapsed_env_steps: environment steps that the rows took, int32 [...].
        """
        return self.gamma(learner)

    def own_writer(self, spec: LevelSpec) -> tuple[Any, int] | None:
        """A TensorBoard writer that the level brings along, for host loops to write its metrics to.

        Returns:
            The writer, and the number of calls of `learn` between two writes; None for none.
        """
        return None

    def gamma(self, learner: Any) -> jax.Array:
        """The level's own discount: its learner's `gamma`.

        For reward_discount="gamma", and needs=("return",).
        """
        gamma = learner.get("gamma") if isinstance(learner, dict) else None
        gamma = gamma if gamma is not None else getattr(learner, "gamma", None)
        if gamma is None:
            raise TypeError(
                f'{type(self).__name__} has reward_discount="gamma" or needs=("return",), but its '
                f"learner has no entry gamma: give it one, or define gamma(learner)."
            )
        return gamma


def discount_of(level: Level, learner: Any) -> Any:
    """`reward_discount` of a level: 1.0, or a float32 []."""
    if isinstance(level.reward_discount, str):
        return level.gamma(learner)
    return 1.0 if level.reward_discount == 1.0 else jnp.float32(level.reward_discount)


def discounted_steps(discount: Any, elapsed_env_steps: jax.Array) -> jax.Array:
    """Sum of the weights of a row's rewards, which is its length where nothing is discounted."""
    steps = jnp.maximum(elapsed_env_steps, 1).astype(jnp.float32)
    if isinstance(discount, float) and discount == 1.0:
        return steps
    ratio = (1.0 - discount**steps) / jnp.where(discount == 1.0, 1.0, 1.0 - discount)
    return jnp.where(discount == 1.0, steps, ratio)


@functools.cache
def _with_defaults(cls: type) -> type:
    return type(cls.__name__, (cls, Level), {"__module__": cls.__module__})


_PARAMETERS = {
    "act": ("learner", "memory", "obs", "ctx"),
    "draft": ("learner", "memory", "obs", "ctx"),
    "after_transition": ("learner", "memory", "row", "ctx"),
    "reward": ("learner", "rows", "ctx"),
    "learn": ("learner", "replay", "ctx"),
    "update_statistics": ("learner", "rows", "mask", "ctx"),
}
_INTERVALS = ("control_interval", "chunk_size")
_GONE = {
    "prepare": "draft(learner, memory, obs, ctx) -> (Decision, memory, needs_act)",
    "row_fields": 'Decision(action, memory, store={"name": value})',
    "observe_env_steps": "ctx.env_steps",
    "ready": "learn_from and learn_until",
}


def as_level(level: Any) -> Any:
    """Give a level that does not inherit from Level the defaults of the protocol.

    Raises:
        TypeError: if it is not a frozen dataclass, has no `act`, or methods of another protocol.
    """
    name = type(level).__name__
    if isinstance(level, type) or not dataclasses.is_dataclass(level):
        raise TypeError(f"a level is an instance of a frozen dataclass, got {level!r}.")
    if not level.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]  # hidden
        raise TypeError(f"{name} is not frozen: declare it with @dataclass(frozen=True).")
    if not callable(getattr(level, "act", None)) or getattr(type(level), "act", None) is Level.act:
        raise TypeError(f"{name} does not define act, the one method a level must have.")
    if not isinstance(level, Level):
        full = object.__new__(_with_defaults(type(level)))
        for field in dataclasses.fields(level):
            object.__setattr__(full, field.name, getattr(level, field.name))
        level = full
    for method, instead in _GONE.items():
        if callable(getattr(level, method, None)):
            raise TypeError(f"{name}.{method} is of an earlier protocol: use {instead}.")
    for method, names in _PARAMETERS.items():
        function = getattr(level, method)
        if function is None:
            continue
        try:
            inspect.signature(function).bind(*names)
        except TypeError as error:
            raise TypeError(
                f"{name}.{method} must take ({', '.join(names)}), but takes "
                f"{inspect.signature(function)}: {error}."
            ) from None
    for attribute in ("buffer_size", "rollout_length", "update_interval", "n_updates", *_INTERVALS):
        value = getattr(level, attribute)
        if isinstance(value, float) and value.is_integer():  # 64.0 is 64
            level = copy.copy(level)
            object.__setattr__(level, attribute, int(value))
    for field in dataclasses.fields(level):
        if field.hash or field.compare:
            check_hashable(f"{field.name} of {name}", getattr(level, field.name))
    return check_hashable(name, level)
