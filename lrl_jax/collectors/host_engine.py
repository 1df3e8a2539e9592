"""Collecting in Gymnasium environments: a loop on the host with one jitted call a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode

from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.device_engine import Way
from lrl_jax.collectors.preprocess import Preprocess, reset_arguments
from lrl_jax.collectors.recording import Record, Store
from lrl_jax.collectors.rollout import Ended, Transitions
from lrl_jax.envs.gymnasium_adapter import HostEnv, rows_of, success_in
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.randomness import Stream
from lrl_jax.spaces import Box


def _decide(hierarchy, flat, raw, obs, mask):
    """First tick of a chunk. Returns the state's leaves, and actions as sent and as decided."""
    state, action = hierarchy.get_action(flat.state(raw), obs, mask)
    return flat.raw(state), hierarchy.action_space.clip(action), action


def _settle(hierarchy, flat, learn, raw, step, mask):
    """What follows a step: bookkeeping, and the updates owed."""
    state = hierarchy.process_transition(flat.state(raw), *step, mask)
    state, metrics = hierarchy.learn(state) if learn else (state, {})
    return flat.raw(state), metrics


def _settle_and_decide(hierarchy, flat, learn, raw, step, mask, obs, next_mask):
    """Between two steps, in one call."""
    raw, metrics = _settle(hierarchy, flat, learn, raw, step, mask)
    return *_decide(hierarchy, flat, raw, obs, next_mask), metrics


def _decide_ahead(hierarchy, flat, capacity, raw, obs, n_ticks):
    """Actions of `n_ticks` ticks, leaves [capacity, n, ...], of a level that does not look."""
    space = hierarchy.action_space

    def body(t, loop):
        state, actions = loop
        state, action = hierarchy.get_action(state, obs)
        return state, jax.lax.dynamic_update_index_in_dim(actions, action, t, 0)

    actions = jnp.zeros((capacity, len(obs), *space.shape), space.dtype)
    _, actions = jax.lax.fori_loop(0, n_ticks, body, (flat.state(raw), actions))
    return space.clip(actions), actions


def _replay(hierarchy, flat, raw, ticks, n_ticks):
    """The bookkeeping of `n_ticks` ticks, of observations and steps [capacity, n, ...]."""

    def body(t, state):
        obs, *step = (x[t] for x in ticks)
        state, _ = hierarchy.get_action(state, obs)
        return hierarchy.process_transition(state, *step)

    return flat.raw(jax.lax.fori_loop(0, n_ticks, body, flat.state(raw)))


def _add(hierarchy, store, transitions):
    del hierarchy
    return store.add(transitions)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """How a state's leaves are put together: typed keys pass to jitted calls as plain numbers.

    A call with typed keys, or with classes around its arrays, takes longer than all it does.
    """

    treedef: Any
    keys: tuple[tuple[int, str], ...]  # places of typed keys, and their kind

    @classmethod
    def of(cls, state: Any) -> _Flat:
        leaves, treedef = jax.tree.flatten(state)
        keys = [
            (i, str(jax.random.key_impl(leaf)))
            for i, leaf in enumerate(leaves)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        return cls(treedef, tuple(keys))

    def raw(self, state: Any) -> list[jax.Array]:
        leaves = jax.tree.leaves(state)
        for i, _ in self.keys:
            leaves[i] = jax.random.key_data(leaves[i])
        return leaves

    def state(self, raw: list[jax.Array]) -> Any:
        leaves = list(raw)
        for i, impl in self.keys:
            leaves[i] = jax.random.wrap_key_data(leaves[i], impl=impl)
        return jax.tree.unflatten(self.treedef, leaves)


@dataclasses.dataclass
class _Tick:
    """A tick's data, [n, ...] each, kept until it is recorded."""

    obs: np.ndarray
    act: np.ndarray
    step: tuple[np.ndarray, ...]  # obs_next, rew, terminated, truncated
    valid: np.ndarray
    ended: Ended | None  # None where no episode ended


class HostEngine:
    """Environments, hierarchy and buffer of a collector whose environments are Gymnasium's.

    Args:
        hierarchy: built for the environment.
        env: Gymnasium environment, single or vector.
        preprocess: sees the data first, or None.

    Attributes:
        n: number of instances.
        store: replay buffer, or None.
    """

    def __init__(self, hierarchy: Hierarchy, env: Any, preprocess: Preprocess | None = None):
        if any(getattr(level, "stagger", False) for level in hierarchy.levels):
            raise ValueError(
                "stagger=True sets the clocks of environments, which Gymnasium's do not show: "
                "switch it off."
            )
        self.host = HostEnv(env, hierarchy.env_spec.obs_space.dtype)
        self.env, self.n = env, self.host.n
        self.preprocess = preprocess
        self.store: Store | None = None
        self._flat: _Flat | None = None
        self._raw: list[jax.Array] = []
        self._shared = True
        self._rng = np.random.default_rng(0)
        self._ids = np.arange(self.n)
        self._obs = np.zeros((self.n, *hierarchy.obs_shape), self.host.dtype)
        self._returns = np.zeros(self.n, np.float32)
        self._lengths = np.zeros(self.n, np.int32)
        self._success = np.zeros(self.n, bool)
        # Instances that were stepped without anybody looking: reset before they are used again.
        self._stale = np.zeros(self.n, bool)
        self._some_stale = False
        # An error has left observations and sums that do not belong together: all are reset first.
        self._broken = False

    # ------------------------------------------------------------------ state

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
            seed: of all random streams, those of the environments included; None goes on with them.
            reset_kwargs: further arguments of the environments' reset.
            key: of the environments, in place of a seed.
        """
        kwargs = reset_arguments(reset_kwargs)
        env_seed = kwargs.pop("seed", seed)
        if self._flat is None and env_seed is None:
            env_seed = 0
        if key is not None:
            env_seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
        key = jax.random.key(0 if seed is None else seed)
        if state is None:
            state = hierarchy.init(jax.random.split(key, 3)[2], self.n)
        else:
            state = hierarchy.reset(checks.state_of(state, self.n))
        if seed is not None:
            state = state.replace(stream=Stream.create(jax.random.fold_in(key, 0xDEC1)))
            self._rng = np.random.default_rng(seed)
        self._begin_anew(state, env_seed, **kwargs)

    def _begin_anew(self, state: HierarchyState, env_seed: int | None, **kwargs: Any) -> None:
        """Reset all environments; `state` has been reset."""
        self._broken = True  # until all of this is done
        self.set_state(state)
        for sums in (self._returns, self._lengths, self._success, self._stale):
            sums[:] = 0
        self._some_stale = False
        if self.store is not None:
            self.store = self.store.cut()
        self._obs = self.host.reset(env_seed, **kwargs)
        if self.preprocess is not None:
            self._obs = np.asarray(self.preprocess.on_reset(self._obs, self._ids))
        self._broken = False

    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the engine goes on."""
        assert self._flat is not None
        self._shared = True
        return self._flat.state(self._raw)

    def set_state(self, state: HierarchyState) -> None:
        """Go on with another state, of n instances."""
        self._shared, self._flat = True, _Flat.of(state)
        self._raw = self._flat.raw(state)

    @property
    def obs(self) -> np.ndarray:
        """Observations to act on next, [n, ...]."""
        return self._obs

    def frame(self) -> Any:
        """Gymnasium environments draw themselves."""
        return None

    # -------------------------------------------------------------- collecting

    def begin(self, hierarchy: Hierarchy, owed: Owed, reset_kwargs: dict[str, Any] | None) -> Owed:
        """Before the first tick of a call; `reset_kwargs["options"]` goes to resets on the way.

        After an error, and where instances that sat out cannot be reset alone, all are reset.
        """
        kwargs = reset_arguments(reset_kwargs)
        options = kwargs.pop("options", None)
        if options and self.host.mode is AutoresetMode.SAME_STEP:
            raise ValueError(
                "gym_reset_kwargs: an environment in mode SAME_STEP resets itself, without "
                "options: make it with autoreset_mode=AutoresetMode.DISABLED."
            )
        self.host.options = options
        if kwargs:
            raise ValueError(
                f"gym_reset_kwargs has {sorted(kwargs)}, but single instances are reset with "
                f"options only: pass the rest to reset."
            )
        self._recover(hierarchy)
        return owed

    def settle(self, hierarchy: Hierarchy) -> None:
        """Make resets that are due now."""
        self._recover(hierarchy)
        self._restart(hierarchy, self._stale.copy())

    def _recover(self, hierarchy: Hierarchy) -> None:
        """Reset all instances where some of them cannot go on and cannot be reset alone."""
        if self._broken or (self._some_stale and not self.host.can_pause):
            self._begin_anew(hierarchy.reset(self.state()), None)

    def run(self, hierarchy: Hierarchy, way: Way, owed: Owed, n_ticks: int) -> tuple[Record, Owed]:
        """Take up to `n_ticks` ticks; returns their record and what is still owed.

        What raises in a tick - an environment, the user's function, an interrupt - loses that tick;
        the next call begins with a reset.
        """
        record = _Recorder(way, self.n, hierarchy)
        ahead = way.mode == "n_steps" and self._looks_ahead(hierarchy, way) and not self._some_stale
        run = self._run_ahead if ahead else self._run
        try:
            return run(hierarchy, way, owed, n_ticks, record)
        except BaseException:
            self._broken = True
            raise

    def _run(
        self, hierarchy: Hierarchy, way: Way, owed: Owed, n_ticks: int, record: _Recorder
    ) -> tuple[Record, Owed]:
        """One call between two ticks."""
        everyone = way.mode == "n_steps"
        keeps_actions = way.record or self.store is not None or self.preprocess is not None
        first = between = None
        before: _Tick | None = None
        for _ in range(n_ticks):
            if not everyone and not owed.active.any():
                break
            mask = None if everyone else owed.active
            if self._some_stale and (self._stale & owed.active).any():
                self._finish(hierarchy, way, before, record)
                before = None
                self._restart(hierarchy, self._stale & owed.active)
            obs = self._obs
            if way.random:
                act = sent = self._random_actions(hierarchy)
            else:
                raw = self._owned()
                if before is None:
                    first = first or hierarchy.jitted(_decide, self._flat, donate=0)
                    self._raw, sent, act = first(raw, obs, mask)
                else:
                    if between is None:
                        between = hierarchy.jitted(
                            _settle_and_decide, self._flat, way.learn, donate=0
                        )
                    last = None if everyone else before.valid
                    self._raw, sent, act, metrics = between(raw, before.step, last, obs, mask)
                    if metrics:
                        record.metrics.append(metrics)
                sent = np.asarray(sent)
                act = np.asarray(act) if keeps_actions else sent
            self.host.send(sent)
            if before is not None:
                self._keep(hierarchy, before, record)  # while the environments are busy
            before = self._receive(obs, act, owed.active, everyone)
            if not everyone:
                done = before.ended.done if before.ended else np.zeros(self.n, bool)
                owed = owed.after(way.mode, done)
        self._finish(hierarchy, way, before, record)
        if everyone:
            left = owed.left - len(record)
            owed = owed.replace(active=owed.active & (left > 0), left=left)
        return record.result(), owed

    def _looks_ahead(self, hierarchy: Hierarchy, way: Way) -> bool:
        """Whether decisions depend on nothing that the ticks of a chunk bring about."""
        blind = hierarchy.n_levels == 1 and hierarchy.levels[0].is_blind
        return (
            blind and way.capacity > 1 and self.preprocess is None and not (way.learn or way.random)
        )

    def _run_ahead(
        self, hierarchy: Hierarchy, way: Way, owed: Owed, n_ticks: int, record: _Recorder
    ) -> tuple[Record, Owed]:
        """The same with one call before and one after all ticks."""
        decide = hierarchy.jitted(_decide_ahead, self._flat, way.capacity)
        sent, acts = jax.device_get(decide(self._raw, self._obs, np.int32(n_ticks)))
        ticks: list[_Tick] = []
        try:
            for t in range(n_ticks):
                obs = self._obs
                self.host.send(sent[t])
                if ticks:
                    self._keep(hierarchy, ticks[-1], record)  # while the environments are busy
                ticks.append(self._receive(obs, acts[t], owed.active, True))
            self._keep(hierarchy, ticks[-1], record)
        finally:  # what was stepped before an error is not lost
            if ticks:
                self._replay(hierarchy, way, ticks)
        left = owed.left - n_ticks
        return record.result(), owed.replace(active=owed.active & (left > 0), left=left)

    def _replay(self, hierarchy: Hierarchy, way: Way, ticks: list[_Tick]) -> None:
        """The bookkeeping of ticks whose actions were drawn ahead."""
        padding = way.capacity - len(ticks)

        def column(arrays):
            stacked = np.stack(arrays)
            return np.pad(stacked, [(0, padding)] + [(0, 0)] * (stacked.ndim - 1))

        columns = [column([tick.obs for tick in ticks])]
        columns += [column(values) for values in zip(*(tick.step for tick in ticks), strict=True)]
        replay = hierarchy.jitted(_replay, self._flat, donate=0)
        self._raw = replay(self._owned(), tuple(columns), np.int32(len(ticks)))

    def end(self, hierarchy: Hierarchy, way: Way, owed: Owed) -> None:
        """After the last tick of a call."""
        del owed
        if way.random:
            # The environments have moved on under the hierarchy: it starts anew.
            self.set_state(hierarchy.reset(self.state()))

    def _owned(self) -> list[jax.Array]:
        """Leaves of the state that may be donated."""
        if self._shared:
            self._raw = [jnp.copy(leaf) for leaf in self._raw]
            self._shared = False
        return self._raw

    def _finish(self, hierarchy, way, before: _Tick | None, record: _Recorder) -> None:
        """Settle the last tick, so that the state is whole."""
        if before is None:
            return
        if not way.random:
            settle = hierarchy.jitted(_settle, self._flat, way.learn, donate=0)
            mask = None if way.mode == "n_steps" else before.valid
            self._raw, metrics = settle(self._owned(), before.step, mask)
            if metrics:
                record.metrics.append(metrics)
        self._keep(hierarchy, before, record)

    def _keep(self, hierarchy, tick: _Tick, record: _Recorder) -> None:
        record.add(tick)
        if self.store is not None:
            transitions = Transitions(tick.obs, tick.act, *_order(tick.step), tick.valid)
            self.store = hierarchy.jitted(_add, donate=0)(self.store, transitions)

    def _random_actions(self, hierarchy: Hierarchy) -> np.ndarray:
        space = hierarchy.action_space
        shape = (self.n, *space.shape)
        if isinstance(space, Box):
            return self._rng.uniform(space.low_array, space.high_array, shape).astype(space.dtype)
        return self._rng.integers(0, space.n, shape, space.dtype)

    def _restart(self, hierarchy: Hierarchy, mask: np.ndarray) -> None:
        """Reset the instances in `mask` in mid-episode."""
        if not mask.any():
            return
        obs = self.host.reset_some(mask)
        self._obs = np.where(_wide(mask, obs), self._seen(obs, mask), self._obs)
        self.set_state(hierarchy.reset(self.state(), mask))
        for sums in (self._returns, self._lengths, self._success, self._stale):
            sums[mask] = 0
        self._some_stale = bool(self._stale.any())
        if self.store is not None:
            self.store = self.store.cut(jnp.asarray(mask))

    def _seen(self, obs: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Observations, those of fresh instances as the user's function leaves them."""
        if self.preprocess is None or not fresh.any():
            return obs
        obs = obs.copy()
        obs[fresh] = self.preprocess.on_reset(obs[fresh], self._ids[fresh])
        return obs

    def _receive(
        self, obs: np.ndarray, act: np.ndarray, active: np.ndarray, everyone: bool
    ) -> _Tick:
        """The environments' answer, with the sums of the episodes."""
        answer = self.host.receive()
        obs_next, rew = answer.obs_next, answer.rew
        terminated, truncated = answer.terminated, answer.truncated
        following = answer.obs
        if self.preprocess is None:
            success = success_in(answer.info, self.n)
        else:
            obs_next, rew, terminated, truncated, success, act, following = self._preprocessed(
                answer, act, active
            )
        self._obs = following
        done = terminated | truncated
        if everyone:
            self._returns += rew
            self._lengths += 1
        else:
            self._returns += np.where(active, rew, 0)
            self._lengths += active
            done &= active
            self._stale |= ~active
            self._some_stale = self._some_stale or not active.all()
        if success is not None:
            success &= active
            self._success |= success
        ended = None
        if done.any():
            ended = Ended(
                done=done,
                episode_return=np.where(done, self._returns, 0),
                length=np.where(done, self._lengths, 0),
                success=done & self._success,
                success_at_end=np.zeros_like(done) if success is None else done & success,
            )
            for sums in (self._returns, self._lengths, self._success):
                sums[done] = 0
        return _Tick(obs, act, (obs_next, rew, terminated, truncated), active, ended)

    def _preprocessed(self, answer, act, active):
        """A step as the user's function leaves it, and what is acted on next."""
        given = (answer.obs_next, answer.rew, answer.terminated, answer.truncated)
        fresh = answer.terminated | answer.truncated
        assert self.preprocess is not None
        ids = self._ids[active]
        *changed, info, new_act, _ = self.preprocess.on_step(
            *(x[active] for x in given), rows_of(answer.info, active), act[active], ids
        )
        seen, success = success_in(info, len(ids)), None
        if seen is not None:
            success = np.zeros(self.n, bool)
            success[active] = seen
        step = tuple(x.copy() for x in given)
        for array, value in zip(step, changed, strict=True):
            array[active] = value
        act = act.copy()
        act[active] = new_act
        obs_next, _, terminated, truncated = step
        following = answer.obs
        early = (terminated | truncated) & ~fresh & active
        if early.any():
            following = self.host.reset_some(early)
        fresh = fresh | early
        following = np.where(_wide(fresh, following), following, obs_next)
        return *step, success, act, self._seen(following, fresh & active)


def _order(step):
    """obs_next, rew, terminated, truncated in the order of Transitions' fields."""
    obs_next, rew, terminated, truncated = step
    return rew, terminated, truncated, obs_next


def _wide(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


class _Recorder:
    """Gathers ticks into a Record."""

    def __init__(self, way: Way, n: int, hierarchy: Hierarchy):
        self._way, self._n, self._hierarchy = way, n, hierarchy
        self._ended: list[tuple[int, Ended]] = []
        self._rew: list[np.ndarray] = []
        self._valid: list[np.ndarray] = []
        self._ticks: list[_Tick] = []
        self._last: _Tick | None = None
        self.metrics: list[dict[str, jax.Array]] = []

    def __len__(self) -> int:
        return len(self._rew)

    def add(self, tick: _Tick) -> None:
        """Add a tick."""
        if tick.ended is not None:
            self._ended.append((len(self._rew), tick.ended))
        self._rew.append(tick.step[1])
        self._valid.append(tick.valid)
        if self._way.record:
            self._ticks.append(tick)
        self._last = tick

    def result(self) -> Record:
        """All that was added."""
        shape = (len(self._rew), self._n)
        valid = np.array(self._valid).reshape(shape)
        types = {"episode_return": np.float32, "length": np.int32}
        columns = {
            name: np.zeros(shape, types.get(name, bool))
            for name in ("done", "episode_return", "length", "success", "success_at_end")
        }
        for t, ended in self._ended:
            for name, column in columns.items():
                column[t] = getattr(ended, name)
        metrics = jax.device_get(self.metrics)
        metrics = jax.tree.map(lambda *x: np.stack(x), *metrics) if metrics else {}
        obs_next = None
        if self._way.capacity == 1 and self._last is not None:
            obs_next = self._last.step[0]
            obs_next = np.where(_wide(self._last.valid, obs_next), obs_next, 0).astype(
                obs_next.dtype
            )
        return Record(
            ended=Ended(**columns),
            reward=np.where(valid, np.array(self._rew).reshape(shape), 0).sum(1, np.float64),
            steps=valid.sum(1),
            metrics=metrics,
            transitions=self._transitions() if self._way.record else None,
            obs_next=obs_next,
        )

    def _transitions(self) -> Transitions:
        def stack(arrays, shape, dtype):
            return np.stack(arrays) if arrays else np.zeros((0, self._n, *shape), dtype)

        obs, act = self._hierarchy.env_spec.obs_space, self._hierarchy.action_space
        ticks = self._ticks
        valid = stack([t.valid for t in ticks], (), bool)

        def column(arrays, shape, dtype):
            values = stack(arrays, shape, dtype)
            mask = valid.reshape(*valid.shape, *[1] * (values.ndim - 2))
            return np.where(mask, values, np.zeros((), values.dtype))

        return Transitions(
            obs=column([t.obs for t in ticks], obs.shape, obs.dtype),
            act=column([t.act for t in ticks], act.shape, act.dtype),
            rew=column([t.step[1] for t in ticks], (), np.float32),
            terminated=column([t.step[2] for t in ticks], (), bool),
            truncated=column([t.step[3] for t in ticks], (), bool),
            obs_next=column([t.step[0] for t in ticks], obs.shape, obs.dtype),
            valid=valid,
        )
