"""Levels stacked into one agent whose whole state is a pytree."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import buffers
from lrl_jax.buffers import Control, Row
from lrl_jax.buffers.rows import FIRST_CHILD, N_CHILDREN, to_fields
from lrl_jax.devices import resolve_device
from lrl_jax.env_spec import check_params, env_spec, is_gymnasium
from lrl_jax.exact import Counter
from lrl_jax.hierarchies import checkpoint, checks, printing, stepping
from lrl_jax.hierarchies.gating import select
from lrl_jax.hierarchies.learners import take_over
from lrl_jax.hierarchies.state import HierarchyState, LevelState
from lrl_jax.levels.base import Decision, LevelLike, as_level
from lrl_jax.levels.basic import RandomLevel
from lrl_jax.old_names import answers
from lrl_jax.randomness import Salt, Stream
from lrl_jax.setting_trees import bind_env
from lrl_jax.settings import check_flag, check_int
from lrl_jax.spaces import mapped_space


def _over_instances(map_obs: Callable | None) -> Callable:
    """Map observations [n, ...] of all instances; None is the identity."""
    return (lambda obs: obs) if map_obs is None else jax.vmap(map_obs)


class Hierarchy:
    """A stack of levels, the highest first, that together control an environment.

    The object holds settings only. What changes is a HierarchyState, which its methods take and
    return; they are pure, check their arguments on the host, and can be jitted, vmapped and
    scanned over.

    Args:
        levels: the levels, index 0 the highest; the last acts on the environment.
        env: a gymnax environment, or a Gymnasium environment (single or vector).
        env_params: parameters of a gymnax environment, its defaults if None.
        env_obs_maps: one function per level from ONE instance's observation to what it sees,
            None for the identity. Hides information, or moves a trained level to an environment
            with other observations.
        mapped_env_obs_shapes: the shape each map returns: None is inferred, a negative number is
            added to the observation's size, anything else is checked.
        signals: names of scalars in the info of the environment's steps that rows accumulate as
            they do the reward: costs, health, rewards of options.
        frozen: indices of levels that act as in evaluation, and learn nothing, in train mode too.
        device: where `init` puts the state; the default device if None.
        writer: a TensorBoard writer for host loops that are not given another.

    Raises:
        ValueError, TypeError: if levels do not fit each other or the environment, with both
            spaces in the message.
    """

    @answers(keep_params="init(key, n, learners=[...]) keeps those of a state, level by level")
    def __init__(
        self,
        levels: Sequence[LevelLike],
        env: Any,
        env_params: Any = None,
        env_obs_maps: Sequence[Callable | None] | None = None,
        mapped_env_obs_shapes: Sequence[Any] | None = None,
        *,
        signals: Sequence[str] = (),
        frozen: Sequence[int] = (),
        device: Any = None,
        writer: Any = None,
        training: bool = True,
    ):
        if not isinstance(levels, Sequence) or not levels:
            raise ValueError(f"levels must be a non-empty list of levels, got {levels!r}.")
        check_params(env, env_params)
        self.levels = tuple(as_level(level) for level in levels)
        self.frozen = checks.frozen_levels(frozen, len(self.levels))
        self.env, self.env_params = env, env_params
        self.device, self.writer, self.training = (
            resolve_device(device),
            writer,
            check_flag("training", training),
        )
        self.env_spec = env_spec(env, env_params)
        n_levels = len(self.levels)
        for name, value in (
            ("env_obs_maps", env_obs_maps),
            ("mapped_env_obs_shapes", mapped_env_obs_shapes),
        ):
            if value is not None and not isinstance(value, Sequence):
                raise TypeError(f"{name} must be a list with one entry per level, got {value!r}.")
            if value is not None and len(value) != n_levels:
                raise ValueError(
                    f"{name} has {len(value)} entries, but there are {n_levels} levels: give one "
                    f"for each level, None where nothing is special."
                )
        maps = tuple(env_obs_maps) if env_obs_maps else (None,) * n_levels
        self.env_obs_maps = tuple(bind_env(f, env) for f in maps)
        self.levels = checks.levels_in_env(self.levels, self.env_obs_maps, env)
        self.mapped_env_obs_shapes = tuple(mapped_env_obs_shapes or (None,) * n_levels)
        self.signals = _names(signals)
        seen = checks.mapped_shapes(self.env_obs_maps, self.mapped_env_obs_shapes, self.env_spec)
        self._obs_spaces = [
            mapped_space(f, x.shape, x.dtype, self.env_spec.obs_space)
            for f, x in zip(self.env_obs_maps, seen, strict=True)
        ]
        self._goals = [
            self.env_spec.goal_indices.mapped(f, self.env_spec.obs_space, space.dim)
            for f, space in zip(self.env_obs_maps, self._obs_spaces, strict=True)
        ]
        self.specs = self.specs_for(1)
        self._maps = [_over_instances(f) for f in self.env_obs_maps]
        self._compile()

    def _compile(self) -> None:
        """Jit the steps for this mode; nothing is compiled yet."""
        training = tuple(self.training and i not in self.frozen for i in range(self.n_levels))
        static = (self.levels, self._maps, training)
        self._get_action = jax.jit(functools.partial(stepping.get_action, *static))
        self._process = jax.jit(functools.partial(stepping.process_transition, *static))
        self._learn = jax.jit(
            functools.partial(stepping.learn, self.levels, self.specs, self.frozen)
        )
        self._init = jax.jit(self._make_state, static_argnums=1)
        self._other_mode: Hierarchy | None = None
        self._jitted: dict[Any, Callable] = {}

    def jitted(self, function: Callable, *static: Any, donate: int | None = None) -> Callable:
        """Jit `function(self, *static, ...)`, once for equal static arguments.

        The cache lives as long as the hierarchy, so that Python loops compile once. `donate` is
        the index of the argument after `static` that the function may overwrite.
        """
        entry = (function, static, donate)
        if entry not in self._jitted:
            donated = () if donate is None else (donate,)
            bound = functools.partial(function, self, *static)
            self._jitted[entry] = jax.jit(bound, donate_argnums=donated)
        return self._jitted[entry]

    def specs_for(self, n: int, check: bool = True):
        """The `LevelSpec` of each level, with n instances."""
        seen = (self._obs_spaces, self._goals)
        return checks.level_specs(self.levels, *seen, self.env_spec, n, check)

    def see(self, i: int, obs: jax.Array) -> jax.Array:
        """What level i sees of observations [n, *obs_shape], [n, *its obs_shape]."""
        return self._maps[i](obs)

    @property
    def learn_ticks(self) -> int | None:
        """Ticks between the updates of on-policy levels; None without any.

        The greatest common divisor of their intervals: loops must learn at least this often.
        """
        ticks = [
            stepping.rollout_ticks(level, spec)
            for i, (level, spec) in enumerate(zip(self.levels, self.specs, strict=True))
            if level.rollout_length is not None and level.n_updates and i not in self.frozen
        ]
        return math.gcd(*ticks) if ticks else None

    def __repr__(self) -> str:
        levels = ", ".join(type(level).__name__ for level in self.levels)
        mode = "train" if self.training else "eval"
        return f"<Hierarchy [{levels}] of {type(self.env).__name__}, {mode} mode>"

    def __str__(self) -> str:
        """The stack as a table: spaces, how long decisions last, replay, numbers learned."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.n_levels))
        learners = jax.eval_shape(self.init_learners, keys)
        mode = "train" if self.training else "eval"
        title = f"Hierarchy of {type(self.env).__name__}, {mode} mode"
        return printing.stack(title, self.levels, self.specs, learners, self.frozen)

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of one instance's observation."""
        return self.env_spec.obs_space.shape

    @property
    def action_space(self):
        """The environment's action space."""
        return self.env_spec.action_space

    def init(
        self,
        key: jax.Array,
        n_env_instances: int | None = None,
        learners: Sequence[Any] | None = None,
    ) -> HierarchyState:
        """Create the state of `n_env_instances` instances; consumes `key`.

        Args:
            key: typed random key.
            n_env_instances: number of instances, n; if None, that of a Gymnasium vector
                environment, else 1.
            learners: one per level, kept instead of a fresh one; None for a fresh one. Settings are
                those of this hierarchy: learning rates, schedules, warm-ups.

        Raises:
            ValueError: if a kept learner is not of the shape its level needs, or a buffer is too
                small for the number of instances.
        """
        checks.typed_key(key)
        if n_env_instances is None and is_gymnasium(self.env):
            n_env_instances = getattr(self.env, "num_envs", 1)
        n = check_int("n_env_instances", n_env_instances, 1)
        if learners is not None and not isinstance(learners, Sequence):
            raise TypeError(f"learners must be a list with one entry per level, got {learners!r}.")
        if learners is not None and len(learners) != self.n_levels:
            raise ValueError(f"learners has {len(learners)} entries for {self.n_levels} levels.")
        for i, level in enumerate(self.levels):
            if 0 < level.buffer_size < n:
                raise ValueError(
                    f"buffer_size={level.buffer_size} of level {i} is smaller than the {n} "
                    f"instances: each needs room for at least one row."
                )
        state = self._init(key, n)
        if learners is not None:
            state = self.reset(self._keep(state, learners))
        return state if self.device is None else jax.device_put(state, self.device)

    def for_testing(
        self, state: HierarchyState, key: jax.Array, n_env_instances: int
    ) -> HierarchyState:
        """A state without replay of `n_env_instances` instances that share `state`'s learners.

        For the eval mode of this hierarchy; can be traced. Consumes `key`.
        """
        new = self._make_state(key, n_env_instances, with_buffers=False)
        levels = tuple(
            fresh.replace(learner=take_over(i, old.learner, fresh.learner, with_settings=True))
            for i, (old, fresh) in enumerate(zip(state.levels, new.levels, strict=True))
        )
        total = jax.tree.map(jnp.copy, state.n_total_env_steps)
        return self.reset(new.replace(levels=levels, n_total_env_steps=total))

    def _make_state(self, key: jax.Array, n: int, with_buffers: bool = True) -> HierarchyState:
        specs = self.specs_for(n, check=with_buffers)
        key, *keys = jax.random.split(key, self.n_levels + 1)
        learners = self.init_learners(keys, specs)
        levels = [self._make_level_state(i, learners, specs, n) for i in range(self.n_levels)]
        state = HierarchyState(
            levels=tuple(levels),
            active_level=jnp.zeros(n, jnp.int32),
            n_total_env_steps=Counter.zero(),
            stream=Stream.create(key),
        )
        rows_of = [self._try_level(i, state, specs[i], key) for i in range(self.n_levels)]
        levels = [
            s.replace(store=_zeros(row.stored, n), greedy=jnp.zeros(n, bool) if asks else None)
            for s, (row, asks, _) in zip(levels, rows_of, strict=True)
        ]
        if with_buffers:
            for i, (_, _, fields) in enumerate(rows_of):
                levels[i] = levels[i].replace(buffer=self._make_buffer(i, fields, n))
        else:  # there are no children to look for
            levels = [s.replace(first_child=None) for s in levels]
        return state.replace(levels=tuple(levels))

    def init_learners(
        self, keys: Sequence[Any], specs: Sequence[Any] | None = None, levels: Sequence[Any] = ()
    ) -> list[Any]:
        """The learners that a state begins with; can be traced.

        Args:
            keys: typed, one for each level; consumed.
            specs: of the levels; those of one instance if None.
            levels: instead of the hierarchy's own, with settings that may be traced.
        """
        levels, specs = levels or self.levels, specs or self.specs
        # Copies, so that no two leaves are one array: all of them may be donated.
        return [
            jax.tree.map(_own, level.init_learner(k, spec))
            for level, k, spec in zip(levels, keys, specs, strict=True)
        ]

    def _make_level_state(self, i: int, learners, specs, n: int) -> LevelState:
        level, spec, learner = self.levels[i], specs[i], learners[i]
        space, needs = spec.action_space, level.needs

        def zeros(space_):
            return jnp.zeros((n, *space_.shape), space_.dtype)

        return LevelState(
            learner=learner,
            memory=_repeat(level.init_memory(learner), n),
            buffer=None,
            obs=zeros(spec.obs_space),
            action=zeros(space),
            store={},
            greedy=None,
            cum_reward=jnp.zeros(n, jnp.float32),
            signals={name: jnp.zeros(n, jnp.float32) for name in self.signals},
            elapsed_env_steps=jnp.zeros(n, jnp.int32),
            n_steps_in_control=jnp.zeros(n, jnp.int32),
            owed=jnp.zeros((), jnp.int32),
            learn_from=jnp.array(level.learn_from, jnp.float32),
            learn_until=jnp.array(level.learn_until, jnp.float32),
            above_obs=zeros(specs[i - 1].obs_space) if "control" in needs else None,
            first_child=jnp.zeros(n, jnp.uint32) if "children" in needs else None,
            discounted_return=jnp.zeros(n, jnp.float32) if "return" in needs else None,
        )

    def _try_level(self, i: int, state: HierarchyState, spec, key) -> tuple[Row, bool, Any]:
        """Trace the methods of a level for one instance, and refuse what they may not return.

        Returns:
            A row as the level stores it, whether it ever asks for greedy behaviour below, and the
            fields of a row in its buffer; shapes without a leading axis.
        """
        level, s = self.levels[i], state.levels[i]
        name = f"level {i} ({type(level).__name__})"
        asks = False

        def example(space):
            return jnp.zeros(space.shape, space.dtype)

        def once(learner, memory, keys):
            nonlocal asks
            key, draft_key, after_key, close_key = keys
            above = None if i == 0 else example(self._obs_spaces[i - 1])
            ctx = stepping.context(
                self.levels,
                state,
                i,
                key=key,
                level_input=jnp.zeros(0, jnp.float32)
                if spec.input_space is None
                else example(spec.input_space),
                explores=jnp.ones((), bool),
                control=None if i == 0 else Control(jnp.zeros((), jnp.int32), above, above),
                training=True,
            )
            obs = example(spec.obs_space)
            decision = level.act(learner, memory, obs, ctx)
            decision = checks.decided(f"{name}.act", decision, memory, spec)
            asks = _asks(decision)
            if level.draft is not None:
                of_draft = ctx.replace(key=draft_key)
                drafted, again, needs = level.draft(learner, memory, obs, of_draft)
                checks.decided(f"{name}.draft", drafted, memory, spec)
                checks.shaped(f"{name}.draft: needs_act", needs, ())
                checks.decided(f"{name}.act", decision.replace(memory=again), memory, spec)
                checks.same_store(f"{name}.draft", drafted.store, decision.store)
                asks = asks or _asks(drafted)
            zero = jnp.zeros((), jnp.int32)
            row = Row(
                obs=obs,
                level_input=ctx.level_input,
                act=jnp.zeros(spec.action_space.shape, spec.action_space.dtype),
                rew=jnp.zeros((), jnp.float32),
                obs_next=obs,
                terminated=zero > 0,
                truncated=zero > 0,
                elapsed_env_steps=zero,
                n_steps_in_control=zero,
                hands_back=zero > 0,
                signals={signal: jnp.zeros((), jnp.float32) for signal in self.signals},
                control=None if s.above_obs is None else Control(zero, above, above, above),
                discounted_return=None
                if s.discounted_return is None
                else jnp.zeros((), jnp.float32) * level.row_discount(learner, zero),
                stored={k: jnp.asarray(x) for k, x in decision.store.items()},
            )
            of_end = ctx.replace(key=after_key)
            out = level.after_transition(learner, decision.memory, row, of_end)
            checks.closed(f"{name}.after_transition", out, memory, row.stored)
            of_end = ctx.replace(key=close_key)
            _, whole = stepping.close(level, learner, of_end, decision.memory, row)
            fields = to_fields(whole)
            if s.first_child is not None:
                fields |= {FIRST_CHILD: zero.astype(jnp.uint32), N_CHILDREN: zero}
            return row, fields

        memory = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), s.memory)
        keys = (jax.ShapeDtypeStruct(key.shape, key.dtype),) * 4  # nothing is drawn
        row, fields = jax.eval_shape(once, s.learner, memory, keys)
        return row, asks, fields

    def _make_buffer(self, i: int, fields: Any, n: int) -> Any:
        level = self.levels[i]
        if i in self.frozen and not (i and "children" in self.levels[i - 1].needs):
            return None  # its rows are not read
        size = level.buffer_size
        if level.rollout_length is not None:
            size = level.rollout_length * n
        # On-policy rings hold all of their rows, however short episodes are.
        spare = size // n if level.rollout_length is not None else None
        return buffers.create(fields, n, size, spare) if size else None

    def get_action(
        self, state: HierarchyState, obs: jax.Array, mask: jax.Array | None = None
    ) -> tuple[HierarchyState, jax.Array]:
        """Descend from each instance's active level to the last and return its action.

        Args:
            state: of n instances.
            obs: [n, *obs_shape], of the environment's kind of number.
            mask: bool [n], or [] for all or none; instances outside are unchanged bit for bit and
                get their previous action. All if None.

        Returns:
            The state and the actions [n, *action shape] as decided: clip them to the bounds of
            the action space before the environment gets them.
        """
        n = checks.instances_of(state, self.n_levels)
        obs_space = self.env_spec.obs_space
        obs = checks.batch("obs", obs, (n, *obs_space.shape), _kind(obs_space), obs_space.dtype)
        if mask is not None:
            mask = jnp.broadcast_to(checks.batch("mask", mask, (n,), np.bool_, bool), (n,))
        return self._get_action(state, obs, mask)

    def process_transition(
        self,
        state: HierarchyState,
        obs_next: jax.Array,
        rew: jax.Array,
        terminated: jax.Array,
        truncated: jax.Array,
        mask: jax.Array | None = None,
        signals: dict[str, jax.Array] | None = None,
    ) -> HierarchyState:
        """Book one environment step, and hand control up from levels that are done.

        Args:
            state: of n instances, after `get_action`.
            obs_next: [n, *obs_shape], the true final observation where an episode ended.
            rew: floats [n].
            terminated: bool [n].
            truncated: bool [n].
            mask: bool [n], or [] for all or none; instances outside are unchanged bit for bit. All
                if None.
            signals: the hierarchy's signals by name, numbers [n] each.
        """
        n = checks.instances_of(state, self.n_levels)
        obs_space = self.env_spec.obs_space
        obs_next = checks.batch(
            "obs_next", obs_next, (n, *obs_space.shape), _kind(obs_space), obs_space.dtype
        )
        rew = checks.batch("rew", rew, (n,), np.floating, jnp.float32)
        terminated = checks.batch("terminated", terminated, (n,), np.bool_, bool)
        truncated = checks.batch("truncated", truncated, (n,), np.bool_, bool)
        if mask is not None:
            mask = checks.batch("mask", mask, (n,), np.bool_, bool)
        signals = self._checked_signals(signals, n)
        return self._process(state, obs_next, rew, terminated, truncated, mask, signals)

    def _checked_signals(self, signals: Any, n: int) -> dict[str, jax.Array]:
        given = {} if signals is None else dict(signals)
        if set(given) != set(self.signals):
            raise ValueError(
                f"signals are {sorted(given)}, but the hierarchy declares {sorted(self.signals)}: "
                f"missing {sorted(set(self.signals) - set(given))}, undeclared "
                f"{sorted(set(given) - set(self.signals))}."
            )
        return {
            name: checks.batch(f"signals[{name!r}]", x, (n,), np.generic, jnp.float32)
            for name, x in given.items()
        }

    def learn(self, state: HierarchyState) -> tuple[HierarchyState, dict[str, jax.Array]]:
        """Make the updates owed: `n_updates` per `update_interval` new rows of each level.

        The remainder carries over, so the ratio is exact in the long run. On-policy levels update
        after `rollout_length` decisions of nominal length. Metrics are
        `level{i}/{name}`, means over the updates of this call, 0 where none was due.
        """
        checks.instances_of(state, self.n_levels)
        return self._learn(state)

    def add_rows(
        self, state: HierarchyState, rows: Sequence[dict[str, np.ndarray] | None], n_env_steps: int
    ) -> HierarchyState:
        """Store rows that were collected with other states, such as those of workers (host).

        They owe updates as this state's own rows do.

        Args:
            state: has the instances that the rows name.
            rows: of each level, see `buffers.extend`; None for none. A stamp `actor_version` is
                not stored.
            n_env_steps: environment steps in which they were collected.
        """
        checks.instances_of(state, self.n_levels)
        if len(rows) != self.n_levels:
            raise ValueError(f"rows of {len(rows)} levels for {self.n_levels} levels.")
        total = state.n_total_env_steps.add(check_int("n_env_steps", n_env_steps, 0, 2**63))
        levels = []
        for i, (level, s, more) in enumerate(zip(self.levels, state.levels, rows, strict=True)):
            if more is not None:
                if s.buffer is None:
                    raise ValueError(f"level {i} stores no rows: its buffer_size is 0.")
                more = {name: x for name, x in more.items() if name != "actor_version"}
                if s.first_child is not None:  # children stay where they were collected
                    more[N_CHILDREN] = np.zeros_like(more[N_CHILDREN])
                new = n_env_steps if level.rollout_length is not None else len(more["instance"])
                owed = jnp.minimum(s.owed + new, 2**30)
                s = s.replace(buffer=buffers.extend(s.buffer, more), owed=owed)
            levels.append(s)
        return state.replace(levels=tuple(levels), n_total_env_steps=total)

    def with_learners(
        self,
        state: HierarchyState,
        learners: Sequence[Any],
        n_total_env_steps: int | None = None,
        *,
        with_settings: bool = False,
    ) -> HierarchyState:
        """The state with other learners of the same shapes; everything else stays.

        Args:
            state: of any number of instances.
            learners: one per level; None keeps the level's own.
            n_total_env_steps: new step count for schedules and warm-ups, if given.
            with_settings: whether the learners' copies of settings are taken too; else the
                state's stay.

        Raises:
            ValueError, TypeError: where a learner does not fit its level.
        """
        checks.instances_of(state, self.n_levels)
        if len(learners) != self.n_levels:
            raise ValueError(f"learners has {len(learners)} entries for {self.n_levels} levels.")
        state = self._keep(state, learners, with_settings)
        if n_total_env_steps is not None:
            high, low = divmod(check_int("n_total_env_steps", n_total_env_steps, 0, 2**63), 2**32)
            total = Counter(jnp.asarray(high, jnp.uint32), jnp.asarray(low, jnp.uint32))
            state = state.replace(n_total_env_steps=total)
        return state

    def _keep(self, state, learners, with_settings: bool = False) -> HierarchyState:
        levels = (
            s
            if kept is None
            else s.replace(learner=take_over(i, kept, s.learner, with_settings=with_settings))
            for i, (s, kept) in enumerate(zip(state.levels, learners, strict=True))
        )
        return state.replace(levels=tuple(levels))

    def reset(self, state: HierarchyState, mask: jax.Array | None = None) -> HierarchyState:
        """Return instances to level 0 with fresh memory; learners, buffers and counters stay.

        For the start of a run, or after an environment was reset in mid-episode; the end of an
        episode does not need it.

        Args:
            state: of n instances.
            mask: bool [n], the instances to reset. All if None.
        """
        n = checks.instances_of(state, self.n_levels)
        if mask is not None:
            mask = checks.batch("mask", mask, (n,), np.bool_, bool)

        def fresh(level, s: LevelState) -> LevelState:
            names = ("cum_reward", "signals", "elapsed_env_steps", "n_steps_in_control", "greedy")
            names += ("discounted_return",)
            old = {name: getattr(s, name) for name in names} | {"memory": s.memory}
            new = jax.tree.map(jnp.zeros_like, old)
            new["memory"] = _repeat(level.init_memory(s.learner), n)
            buffer = s.buffer if s.buffer is None else buffers.cut(s.buffer, mask)
            return s.replace(buffer=buffer, **(new if mask is None else select(mask, new, old)))

        levels = tuple(fresh(*pair) for pair in zip(self.levels, state.levels, strict=True))
        active = jnp.zeros_like(state.active_level)
        if mask is not None:
            active = select(mask, active, state.active_level)
        return state.replace(levels=levels, active_level=active)

    def get_copy(self, state: HierarchyState) -> HierarchyState:
        """A state for test rollouts: same learners, fresh memory, its own random stream."""
        stream = Stream(jax.random.fold_in(state.stream.key, Salt.COPY), state.stream.tick)
        return self.reset(state).replace(stream=stream)

    def aligned(self, state: HierarchyState, known: bool = False) -> HierarchyState:
        """The state with one cursor for the lowest level's rings, if all are at the same place.

        For loops that step all instances at every tick: a tick's rows are one contiguous write.
        `process_transition` with a mask of [n] undoes it, and so does saving.

        Args:
            state: of n instances.
            known: whether the caller knows that the rings are at the same place, as after `init`.
        """
        last = state.levels[-1]
        if last.buffer is None:
            return state
        last = last.replace(buffer=buffers.align(last.buffer, known))
        return state.replace(levels=(*state.levels[:-1], last))

    def unaligned(self, state: HierarchyState) -> HierarchyState:
        """Undo `aligned`."""
        last = state.levels[-1]
        if last.buffer is None:
            return state
        last = last.replace(buffer=buffers.unalign(last.buffer))
        return state.replace(levels=(*state.levels[:-1], last))

    def set_n_env_instances(
        self, state: HierarchyState, n_env_instances: int, propagate_to_levels: bool = True
    ) -> HierarchyState:
        """Change the number of instances (host only).

        Learners and counters are kept, every instance starts at level 0 with fresh memory, and
        stored rows are redistributed; the oldest are dropped if there is not enough room.
        """
        del propagate_to_levels  # the state of all levels is one pytree here
        checks.instances_of(state, self.n_levels)
        n = check_int("n_env_instances", n_env_instances, 1)
        learners = [s.learner for s in state.levels]
        new = self.init(state.stream.key, n)
        new = self.reset(self._keep(new, learners, with_settings=True))
        levels = []
        for level, old, fresh in zip(self.levels, state.levels, new.levels, strict=True):
            buffer = old.buffer
            if buffer is not None:
                size = level.buffer_size or fresh.buffer.capacity * n
                emptied = {N_CHILDREN: 0} if old.first_child is not None else {}
                on_policy = level.rollout_length is not None
                buffer = buffers.redistribute(buffer, n, size, emptied, only_fresh=on_policy)
                if level.update_statistics is not None and not on_policy:
                    buffer = buffers.seen(buffer)  # no row counts twice
            kept = {name: getattr(old, name) for name in ("owed", "learn_from", "learn_until")}
            if level.rollout_length is not None:  # its updates go by ticks
                kept["owed"] = old.owed // state.n_env_instances * n
            levels.append(fresh.replace(buffer=buffer, **kept))
        return new.replace(
            levels=tuple(levels), n_total_env_steps=state.n_total_env_steps, stream=state.stream
        )

    def train(self) -> Hierarchy:
        """This hierarchy in train mode: explores, stores rows, counts steps."""
        return self if self.training else self._toggled()

    def eval(self) -> Hierarchy:
        """This hierarchy in eval mode: acts without exploring, stores and counts nothing.

        A row that begins in one mode and ends in train mode is stored as a whole.
        """
        return self._toggled() if self.training else self

    def _toggled(self) -> Hierarchy:
        if self._other_mode is None:
            # A copy, not a new one: this may be called while tracing, where spaces cannot be read.
            other = copy.copy(self)
            other.training = not self.training
            other._compile()
            other._other_mode = self
            self._other_mode = other
        return self._other_mode

    def save(self, state: HierarchyState, path: str | Path, *, replay: bool = True) -> None:
        """Write the whole state to the folder `path`.

        An existing checkpoint is replaced once the new one is complete; nothing else ever is.

        Args:
            state: of this hierarchy.
            path: see `lrl_jax.checkpoints.write`.
            replay: whether stored rows are written; loading gives empty replay if not.

        Raises:
            ValueError: for the states of several seeds or of another hierarchy, and if `path` holds
                something other than a checkpoint.
        """
        checks.instances_of(state, self.n_levels)
        if state.active_level.ndim != 1:
            raise ValueError(
                f"the state is of several seeds (active_level has shape "
                f"{state.active_level.shape}): save lrl_jax.take_seed(state, i), one by one."
            )
        checkpoint.save(self, state, path, replay)

    def load(
        self,
        path: str | Path,
        n_env_instances: int | None = None,
        *,
        settings: str = "same",
    ) -> HierarchyState:
        """Read a state written by `save`, for another number of instances if asked.

        Args:
            path: as given to `save`.
            n_env_instances: number of instances, None for as many as were saved.
            settings: "same" refuses checkpoints of other settings; those that a later version
                added count as their defaults. "new" takes this hierarchy's settings wherever the
                saved arrays have its shapes, and logs what differs.

        Raises:
            ValueError: if it was written by a hierarchy with other settings, which are named, or
                is damaged.
            FileNotFoundError: if there is no checkpoint at `path`.
        """
        state = checkpoint.load(self, path, settings)
        if n_env_instances is not None and n_env_instances != state.n_env_instances:
            state = self.set_n_env_instances(state, n_env_instances)
        return state


def RandomHierarchy(env: Any, device: Any = None, *, env_params: Any = None) -> Hierarchy:
    """A hierarchy of one level that draws uniformly from the environment's bounded action space.

    Args:
        env: a gymnax or Gymnasium (vector) environment.
        device: where `init` puts the state.
        env_params: parameters of a gymnax environment, its defaults if None.
    """
    return Hierarchy([RandomLevel()], env, env_params, device=device)


def _names(signals: Sequence[str]) -> tuple[str, ...]:
    """Names of signals, refused where rows could not keep them apart."""
    if isinstance(signals, str) or not isinstance(signals, Sequence):
        raise TypeError(f"signals must be a list of names, got {signals!r}.")
    names = tuple(signals)
    if len(set(names)) < len(names) or not all(isinstance(x, str) and x for x in names):
        raise ValueError(f"signals must be different names, got {names}.")
    return names


def _asks(decision: Decision) -> bool:
    """Whether a decision may ask for greedy behaviour below, known while tracing."""
    return not isinstance(decision.greedy_below, bool) or decision.greedy_below


def _kind(space: Any) -> type:
    """What arrays of observations may be."""
    kinds = {"f": np.floating, "b": np.bool_, "i": np.integer, "u": np.integer}
    return kinds.get(np.dtype(space.dtype).kind, np.floating)


def _zeros(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), tree)


def _own(x: Any) -> jax.Array:
    """A copy without weak type: a Python number would else change the type of what is carried."""
    x = jnp.asarray(x)
    return jnp.array(x, None if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.dtype)


def _repeat(memory: Any, n: int) -> Any:
    """Memory of one instance for n, each leaf its own array."""
    return jax.tree.map(
        lambda x: jnp.repeat(_own(x)[None], n, axis=0),
        memory,
    )
