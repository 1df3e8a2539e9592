"""Collecting in gymnax environments: chunks of ticks in one loop on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.preprocess import Preprocess, reset_arguments
from lrl_jax.collectors.recording import Record, Store
from lrl_jax.collectors.rollout import RolloutCarry, init_carry, tick
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.randomness import Stream


@dataclasses.dataclass(frozen=True)
class Way:
    """How ticks are taken.

    Attributes:
        mode: of counting, see `counting.MODES`.
        learn: make the updates owed after each tick.
        record: keep the transitions.
        random: act at random and leave the hierarchy alone.
        capacity: most ticks of a chunk; 1 also keeps the next observation.
    """

    mode: str = "n_steps"
    learn: bool = False
    record: bool = False
    random: bool = False
    capacity: int = 128


def _chunk(hierarchy, env, way, preprocess, params, owned, owed, n_ticks):
    """Up to `n_ticks` ticks, their number traced, so that any number compiles once.

    Returns what is owned, what is still owed, the ticks taken, and what was recorded, leaves
    [capacity, ...], zero behind the ticks taken.
    """
    everyone = way.mode == "n_steps"

    def step(owned, owed):
        carry, store = owned
        mask = None if everyone else owed.active
        carry, transitions, ended = tick(
            hierarchy, env, params, carry, mask, random=way.random, preprocess=preprocess
        )
        metrics = {}
        if way.learn:
            state, metrics = hierarchy.learn(carry.hierarchy)
            carry = carry.replace(hierarchy=state)
        if store is not None:
            store = store.add(transitions)
        out = {
            "ended": ended,
            "reward": transitions.rew.sum(),
            "steps": transitions.valid.sum(dtype=jnp.int32),
            "metrics": metrics,
            "transitions": transitions if way.record else None,
            "obs_next": transitions.obs_next if way.capacity == 1 else None,
        }
        return (carry, store), owed.after(way.mode, ended.done), out

    def goes_on(loop):
        i, _, owed, _ = loop
        return (i < n_ticks) & owed.active.any()

    def body(loop):
        i, owned, owed, out = loop
        owned, owed, new = step(owned, owed)
        out = jax.tree.map(
            lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, i, 0), out, new
        )
        return i + 1, owned, owed, out

    shapes = jax.eval_shape(step, owned, owed)[2]
    out = jax.tree.map(lambda s: jnp.zeros((way.capacity, *s.shape), s.dtype), shapes)
    i, owned, owed, out = jax.lax.while_loop(goes_on, body, (jnp.int32(0), owned, owed, out))
    return owned, owed, i, out


def _restart(hierarchy, env, preprocess, params, key, n, state):
    carry = init_carry(hierarchy, env, params, key, n, state)
    if preprocess is not None:
        obs = preprocess.on_reset(carry.obs, jnp.arange(n))
        carry = carry.replace(obs=obs)
    return carry


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


@dataclasses.dataclass
class DeviceEngine:
    """Environments, hierarchy and buffer of a collector that live on the device.

    Attributes:
        env, params: gymnax environment and its parameters.
        n: number of instances.
        preprocess: sees the data first, or None.
        carry: state of the rollout; None before the first reset.
        store: replay buffer, or None.
        shared: whether somebody else may hold the arrays of the carry.
    """

    env: Any
    params: Any
    n: int
    preprocess: Preprocess | None = None
    carry: RolloutCarry | None = None
    store: Store | None = None
    shared: bool = True

    def __post_init__(self):
        self._before_trace: RolloutCarry | None = None

    def reset(
        self,
        hierarchy: Hierarchy,
        state: HierarchyState | None,
        seed: int | None,
        reset_kwargs: dict[str, Any] | None = None,
        key: jax.Array | None = None,
    ) -> None:
        """Reset all environments and put the hierarchy back to level 0.

        Args:
            hierarchy: acts.
            state: of n instances; a new one if None.
            seed: of all random streams; None goes on with those there are (0 at first).
            reset_kwargs: has no meaning here but for a `seed`.
            key: of the environments, in place of a seed.
        """
        kwargs = reset_arguments(reset_kwargs)
        seed = kwargs.pop("seed", seed)
        kwargs = {name: value for name, value in kwargs.items() if value not in (None, {})}
        if kwargs:
            raise ValueError(
                f"gym_reset_kwargs has {sorted(kwargs)}, but {type(self.env).__name__} is a gymnax "
                f"environment, whose resets take a seed only: use env_params for settings."
            )
        if key is None:
            if seed is not None:
                key = jax.random.key(seed)
            elif self.carry is None:
                key = jax.random.key(0)
            else:
                key = self.carry.stream.tick_key(255)
        carry = _restart(hierarchy, self.env, self.preprocess, self.params, key, self.n, state)
        if seed is not None:
            stream = Stream.create(jax.random.fold_in(key, 0xDEC1))
            carry = carry.replace(hierarchy=carry.hierarchy.replace(stream=stream))
        self.carry, self.shared = carry, True
        if self.store is not None:
            self.store = self.store.cut()

    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the engine goes on."""
        self.shared = True
        assert self.carry is not None
        return self.carry.hierarchy

    def set_state(self, state: HierarchyState) -> None:
        """Go on with another state, of n instances."""
        assert self.carry is not None
        if _is_traced(state) and not _is_traced(self.carry):
            self._before_trace = self.carry
        self.shared = True
        self.carry = self.carry.replace(hierarchy=state)

    @property
    def is_traced(self) -> bool:
        """Whether the state holds values that are traced."""
        return _is_traced(self.carry)

    def drop_traced(self) -> None:
        """Go back to before a traced state was set, if one was."""
        if _is_traced(self.carry):
            self.carry, self.shared = self._before_trace, True

    def begin(self, hierarchy: Hierarchy, owed: Owed, reset_kwargs: dict[str, Any] | None) -> Owed:
        """Before the first tick of a call."""
        del hierarchy
        if reset_kwargs:
            raise ValueError(
                f"gym_reset_kwargs={reset_kwargs} has no meaning while collecting in a gymnax "
                f"environment, which resets itself: pass them to reset."
            )
        return jax.tree.map(jnp.asarray, owed)

    def settle(self, hierarchy: Hierarchy) -> None:
        """Nothing is due here: who sits out is not touched."""

    def run(self, hierarchy: Hierarchy, way: Way, owed: Owed, n_ticks: int) -> tuple[Record, Owed]:
        """Take up to `n_ticks` ticks; returns their record and what is still owed."""
        if way.mode != "n_steps":
            state = hierarchy.unaligned(self.carry.hierarchy)
            self.carry = self.carry.replace(hierarchy=state)
        run: Callable = hierarchy.jitted(_chunk, self.env, way, self.preprocess, donate=1)
        if self.shared:
            self.carry, self.store = jax.tree.map(jnp.copy, (self.carry, self.store))
            self.shared = False
        owned = (self.carry, self.store)
        owned, owed, taken, out = run(self.params, owned, owed, jnp.asarray(n_ticks, jnp.int32))
        self.carry, self.store = owned
        taken, out = jax.device_get((taken, out))
        out = jax.tree.map(lambda x: x[: int(taken)], out)
        obs_next = out.pop("obs_next")
        record = Record(**out, obs_next=None if obs_next is None else obs_next[-1])
        return record, owed

    def end(self, hierarchy: Hierarchy, way: Way, owed: Owed) -> None:
        """After the last tick of a call."""
        del owed
        if way.random:
            # The environments have moved on under the hierarchy: it starts anew.
            self.set_state(hierarchy.reset(self.state()))

    def frame(self) -> Any:
        """State of the first instance's environment."""
        assert self.carry is not None
        return jax.tree.map(lambda x: x[0], self.carry.env_state)

    @property
    def obs(self) -> Any:
        """Observations to act on next, [n, ...]."""
        assert self.carry is not None
        return self.carry.obs
