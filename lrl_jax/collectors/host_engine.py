"""Collecting in environments on the host: a loop with one jitted call between two steps.

Environments step in lockstep (`HostEnv`) or on their own (`Futures`, `Envpool`); what is not ready
when steps are received stays pending.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import buffers
from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.preprocess import Preprocess, reset_arguments
from lrl_jax.collectors.records import (
    Episodes,
    LevelTransitions,
    Sums,
    Transitions,
    closings,
    decisions,
    nonfinite,
    wide,
    zeroed,
)
from lrl_jax.collectors.requests import Way
from lrl_jax.collectors.stats import Collected, Dropped, Record
from lrl_jax.collectors.store import add
from lrl_jax.collectors.tick import restarted, signals_of
from lrl_jax.envs.vector_infos import success_in
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.randomness import Salt, Stream, key_of
from lrl_jax.spaces import Box

# Functions for `hierarchy.jitted`; states come and go as plain leaves, see `_Flat`.


def _between(hierarchy, flat, levels, learn, raw, before, then):
    """What happens between two steps, in one call; either side can be None.

    Args:
        before: the step taken and its mask: bookkeeping, and the updates owed.
        then: observations and their mask: the next decision.

    Returns:
        The state's leaves; metrics and who is active after `before`; and of `then` actions as sent
        and as decided, and what the levels did.
    """
    state, settled, decided = flat.state(raw), None, None
    if before is not None:
        (*step, signals), mask = before
        state = hierarchy.process_transition(state, *step, mask, signals)
        active = state.active_level if levels else None
        state, metrics = hierarchy.learn(state) if learn else (state, {})
        settled = metrics, active
    if then is not None:
        active, (obs, mask) = state.active_level, then
        state, action = hierarchy.get_action(state, obs, mask)
        did = decisions(active, state, mask) if levels else None
        decided = hierarchy.action_space.clip(action), action, did
    return flat.raw(state), settled, decided


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
        obs, *step, signals = jax.tree.map(lambda x: x[t], ticks)
        state, _ = hierarchy.get_action(state, obs)
        return hierarchy.process_transition(state, *step, None, signals)

    return flat.raw(jax.lax.fori_loop(0, n_ticks, body, flat.state(raw)))


def _add(hierarchy, store, transitions):
    return add(store, transitions)


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

    obs: Any
    act: Any
    step: tuple[Any, ...]  # obs_next, rew, terminated, truncated, signals
    ready: np.ndarray | None  # whose steps these are, all if None
    decided: np.ndarray | None  # those of them that the hierarchy decided, all if None
    episodes: Episodes
    levels: tuple[LevelTransitions, ...] | None = None
    dropped: Dropped | None = None  # steps that were not finite
    is_settled: bool = False  # or was to be, when something raised
    is_kept: bool = False

    @property
    def valid(self) -> np.ndarray:
        """Whose steps these are, bool [n]."""
        return np.ones(len(self.step[1]), bool) if self.ready is None else self.ready


class HostEngine:
    """Environments on the host, hierarchy and buffer of a collector.

    Args:
        hierarchy: built for the environments.
        env: what frames are drawn of.
        source: the environments.
        preprocess: sees the data first, or None.

    Attributes:
        n: number of instances.
        source: the environments.
        store: replay buffer, or None.
    """

    def __init__(
        self, hierarchy: Hierarchy, env: Any, source: Any, preprocess: Preprocess | None = None
    ):
        if any(level.stagger for level in hierarchy.levels):
            raise ValueError(
                "stagger=True sets the clocks of environments, which Gymnasium's do not show: "
                "switch it off."
            )
        self.env, self.source, self.n, self.preprocess = env, source, source.n, preprocess
        self.store: buffers.Buffer | None = None
        self._flat: _Flat | None = None
        self._raw: list[jax.Array] = []
        self._shared = True
        self._rng = np.random.default_rng(0)
        self._ids, n = np.arange(self.n), self.n
        obs, act = hierarchy.env_spec.obs_space, hierarchy.action_space
        self.obs = np.zeros((n, *obs.shape), obs.dtype)  # to act on next
        self._act = np.zeros((n, *act.shape), act.dtype)  # of the pending steps
        self._random = np.zeros(n, bool)  # those of them that the hierarchy knows nothing of
        self._levels: Any = None
        self._sums = Sums.zero(n, np)
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
            seed: of all random streams, those of the environments included; None continues the
                current ones: the environments', at first those of `state`, without one 0.
            reset_kwargs: further arguments of the environments' reset.
            key: of the environments, instead of a seed.
        """
        kwargs = reset_arguments(reset_kwargs)
        env_seed = kwargs.pop("seed", seed)
        if isinstance(env_seed, int | np.integer):  # a list has one for each instance
            env_seed = checks.seed_of('gym_reset_kwargs["seed"]', env_seed)
        if self._flat is None and env_seed is None and key is None:
            if state is None:
                env_seed = 0
            else:
                state, key = restarted(state)
        if key is not None:
            env_seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
            self._rng = np.random.default_rng(env_seed)
        key = key_of(seed or 0)
        if state is None:
            state = hierarchy.init(jax.random.split(key, 3)[2], self.n)
        else:
            state = hierarchy.reset(checks.state_of(state, self.n))
        if seed is not None:
            state = state.replace(stream=Stream.create(jax.random.fold_in(key, Salt.DECISIONS)))
            self._rng = np.random.default_rng(seed)
        self._begin_anew(state, env_seed, **kwargs)

    def _begin_anew(self, state: HierarchyState, env_seed: Any, **kwargs: Any) -> None:
        """Reset all environments; `state` has been reset."""
        self._broken = True  # until all of this is done
        self._put(state)
        self._sums = Sums.zero(self.n, np)
        self._random[:] = False
        if self.store is not None:
            self.store = buffers.cut(self.store)
        self.obs = self.source.reset(env_seed, **kwargs)
        if self.preprocess is not None:
            self.obs = np.asarray(self.preprocess.on_reset(self.obs, self._ids))
        self._broken = False

    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the engine continues."""
        assert self._flat is not None
        self._shared = True
        return self._flat.state(self._raw)

    @property
    def n_env_steps(self) -> int:
        """Environment steps that the state has counted."""
        assert self._flat is not None
        return int(self._flat.state(self._raw).n_total_env_steps)

    def set_state(self, hierarchy: Hierarchy, state: HierarchyState) -> None:
        """Go on with another state, of n instances."""
        busy = self.source.busy
        if busy.any():  # it does not know pending steps: its rows do not continue
            state = hierarchy.reset(state, jnp.asarray(busy))
            self._random |= busy
        self._put(state)

    def _put(self, state: HierarchyState) -> None:
        self._shared, self._flat = True, _Flat.of(state)
        self._raw = self._flat.raw(state)

    def _owned(self) -> list[jax.Array]:
        """Leaves of the state that may be donated."""
        if self._shared:
            self._raw = [jnp.copy(leaf) for leaf in self._raw]
            self._shared = False
        return self._raw

    def saved(self) -> dict[str, Any]:
        """Everything that changes, except the environments, to be saved."""
        return {"state": self.state(), "store": self.store}

    def restore(self, hierarchy: Hierarchy, read: Callable[[Any], Any], is_aligned: bool) -> None:
        """Go on with what was saved, from a fresh episode.

        Args:
            hierarchy: acts.
            read: finds the arrays of a tree of shapes.
            is_aligned: whether the lowest level's rings had one cursor.
        """

        def like():
            state = hierarchy.init(jax.random.key(0), self.n)
            return hierarchy.aligned(state, known=True) if is_aligned else state

        saved = read({"state": jax.eval_shape(like), "store": self.store})
        self.store = saved["store"]
        self.reset(hierarchy, saved["state"], None)

    def frame(self) -> Any:
        """Gymnasium environments draw themselves."""
        return None

    @property
    def first_begins(self) -> bool:
        """Whether the first instance is at the start of an episode."""
        return not self._sums.length[0]

    def differentiable(self, *_: Any) -> Any:
        """Refused."""
        raise ValueError("no_grad=False: Gymnasium environments have no gradients.")

    # -------------------------------------------------------------- collecting

    def begin(
        self, hierarchy: Hierarchy, way: Way, owed: Owed, reset_kwargs: dict[str, Any] | None
    ) -> Owed:
        """Before the first tick of a call; `reset_kwargs` are those of resets on the way.

        After an error, and where instances that sat out cannot be reset alone, all are reset.
        """
        kwargs = reset_arguments(reset_kwargs)
        if "seed" in kwargs:
            raise ValueError(
                "gym_reset_kwargs has a seed, but resets on the way take options only: pass the "
                "rest to reset."
            )
        if not kwargs.get("options"):
            kwargs.pop("options", None)
        self.source.reset_kwargs = kwargs
        self._recover(hierarchy)
        return owed

    def settle(self, hierarchy: Hierarchy) -> None:
        """Make resets that are due now."""
        self._recover(hierarchy)
        self._restart(hierarchy, self.source.stale.copy())

    def _recover(self, hierarchy: Hierarchy) -> None:
        """Reset all instances if some of them cannot continue and cannot be reset alone."""
        if self._broken or self.source.spoiled:
            self._begin_anew(hierarchy.reset(self.state()), None, **self.source.reset_kwargs)

    def run(self, hierarchy: Hierarchy, way: Way, out: Collected, n_ticks: int) -> None:
        """Take up to `n_ticks` ticks; adds their record to `out`, and what is still owed.

        A step that is not finite ends them, where such steps are checked.

        To be held (`lrl_jax.interrupts`). What raises in a tick - an environment, the user's
        function, an interrupt while waiting - loses that tick; those before it are kept whole, and
        the next call begins with a reset.
        """
        self._recover(hierarchy)
        run = _Run(hierarchy, way, self.source.lockstep and way.mode == "n_steps")
        if run.everyone and self._looks_ahead(hierarchy, way) and not self.source.stale.any():
            decide = hierarchy.jitted(_decide_ahead, self._flat, way.capacity)
            run.ahead = jax.device_get(decide(self._raw, self.obs, np.int32(n_ticks)))
        broken = True
        try:
            self._run(run, out, n_ticks)
            self._finish(run)
            broken = False
        finally:
            self._broken |= broken
            if run.ticks:
                self._finish(run)
                out.add(run.result(is_whole=not broken))
                if run.ticks[-1].dropped is not None:
                    last = dataclasses.replace(run.ticks[-1].dropped, tick=out.n_ticks - 1)
                    out.drop(last)
            if run.everyone:
                out.owed = out.owed.after_ticks(len(run.ticks))

    def _run(self, run: _Run, out: Collected, n_ticks: int) -> None:
        """One call between two ticks."""
        for _ in range(n_ticks):
            owed = out.owed
            if not run.everyone and not owed.active.any():
                break
            stale = self.source.stale & owed.active
            if stale.any():
                self._finish(run)
                self._restart(run.hierarchy, stale)
            mask = None if run.everyone else owed.active & ~self.source.busy
            if mask is None or mask.any():
                self.source.send(self._decided(run, mask), mask)
                self._keep(run)  # while the environments are busy
            else:  # all that are owed something are pending
                self._finish(run)
            tick = self._received(run, owed.active)
            if not run.everyone:
                out.owed = owed.after(run.way.mode, tick.episodes.finished, tick.ready)
            if tick.dropped is not None:
                break

    def _decided(self, run: _Run, mask: Any) -> np.ndarray:
        """Actions as sent, of those in the mask; settles the tick before in the same call."""
        if run.ahead is not None:
            sent, act = (actions[len(run.ticks)] for actions in run.ahead)
        elif run.way.random:
            sent = act = self._random_actions(run.hierarchy)
        else:
            sent, act, did = self._advance(run, (self.obs, mask))
            if run.levels:
                self._levels = jax.device_get(did)
        if run.way.record or self.store is not None or self.preprocess is not None:
            self._act = _merged(mask, np.asarray(act), self._act)
        if mask is not None:
            self._random[mask] = run.way.random
        return np.asarray(sent)

    def _advance(self, run: _Run, then: Any) -> Any:
        """See `_between`; settles the last tick, and returns what was decided."""
        between = run.hierarchy.jitted(_between, self._flat, run.levels, run.way.learn, donate=0)
        before = run.unsettled()
        step = None if before is None else (before.step, before.decided)
        self._raw, settled, decided = between(self._owned(), step, then)
        if before is not None:
            run.settled(before, *settled)
        return decided

    def _random_actions(self, hierarchy: Hierarchy) -> np.ndarray:
        space = hierarchy.action_space
        shape = (self.n, *space.shape)
        if isinstance(space, Box):
            return self._rng.uniform(space.low_array, space.high_array, shape).astype(space.dtype)
        return self._rng.integers(0, space.n, shape, space.dtype)

    def _received(self, run: _Run, active: np.ndarray) -> _Tick:
        """The environments' answer, with the sums of the episodes."""
        answer = self.source.receive()
        ready, obs, act, following = answer.ready, self.obs, self._act, answer.obs
        step, info = (answer.obs_next, answer.rew, answer.terminated, answer.truncated), answer.info
        if self.preprocess is not None:
            step, info, act, following = self._preprocessed(self.preprocess, answer, ready)
        n = self.n if ready is None else int(ready.sum())
        success, tells = (self._of_all(x, ready) for x in success_in(info, n))
        told = signals_of(run.hierarchy, info, n)
        signals = {name: self._of_all(values, ready) for name, values in told.items()}
        dropped = None
        if run.way.checks:
            step, signals, ready, dropped = self._without_bad(step, signals, following, ready)
        self.obs = _merged(ready, following, obs)
        _, rew, terminated, truncated = step
        self._sums, episodes = self._sums.after(rew, terminated | truncated, success, tells, ready)
        if dropped is not None:
            self._sums = self._sums.cleared(dropped.bad)
        decided = ready
        if not self.source.lockstep:  # pending steps are received, but does not count
            episodes = episodes.replace(finished=episodes.finished & active)
            decided = ready & ~self._random
        levels = self._levels if run.levels else None
        tick = _Tick(obs, act, (*step, signals), ready, decided, episodes, levels, dropped)
        run.ticks.append(tick)
        return tick

    def _without_bad(
        self, step: tuple[Any, ...], signals: dict[str, Any], following: Any, ready: Any
    ) -> tuple[Any, Any, Any, Dropped | None]:
        """A step, its signals and whose it is without the instances whose step is not finite.

        These are reset before their next use.
        """
        obs_next, rew, *_ = step
        bad = nonfinite((rew, signals, obs_next, following))
        bad = bad if ready is None else bad & ready
        if not bad.any():
            return step, signals, ready, None
        dropped = Dropped(0, bad, rew, obs_next, signals)
        if self.source.can_pause:
            self.source.stale |= bad
        else:
            self._broken = True
        step, signals = zeroed((step, signals), ~bad)
        return step, signals, ~bad if ready is None else ready & ~bad, dropped

    def _of_all(self, rows: np.ndarray, ready: np.ndarray | None) -> np.ndarray:
        """Values [n] of those in `ready` in order, zero elsewhere."""
        if ready is None:
            return rows
        out = np.zeros(self.n, rows.dtype)
        out[ready] = rows
        return out

    def _preprocessed(self, preprocess: Preprocess, answer: Any, ready: np.ndarray | None) -> Any:
        """A step as the user's function leaves it, and what is acted on next."""
        ready = np.ones(self.n, bool) if ready is None else ready
        fresh = (answer.terminated | answer.truncated) & ready
        given = (answer.obs_next, answer.rew, answer.terminated, answer.truncated, self._act)
        *step, self._act = (x.copy() for x in given)
        *own, act = (x[ready] for x in given)
        *changed, info, act, _ = preprocess.on_step(*own, answer.info, act, env_id=self._ids[ready])
        for array, value in zip((*step, self._act), (*changed, act), strict=True):
            array[ready] = value
        obs_next, _, terminated, truncated = step
        following, done = answer.obs, (terminated | truncated) & ready
        early = done & ~fresh
        if early.any():
            if early[0] and self.source.lockstep and self.source.before_reset is not None:
                self.source.before_reset()
            following = _merged(early, self.source.reset_some(early), following)
        following = _merged(done, following, obs_next)
        if done.any():
            following[done] = preprocess.on_reset(following[done], self._ids[done])
        return step, info, self._act, following

    def _finish(self, run: _Run) -> None:
        """Settle and keep the last tick, so that the state is whole."""
        if run.ahead is not None and run.ticks:
            run.ahead, last = None, run.ticks[-1]
            alone = last.dropped is not None  # under a mask, which those before do not have
            self._replay(run, run.ticks[:-1] if alone else run.ticks)
            last.is_settled = True
            if alone:
                self._advance(run, (last.obs, None))
                last.is_settled = False
        if run.ticks and not run.ticks[-1].is_settled and not run.way.random:
            self._advance(run, None)
        self._keep(run)

    def _keep(self, run: _Run) -> None:
        """Store the last tick settled, and drop what is no longer needed."""
        tick = run.ticks[-1] if run.ticks else None
        if tick is None or tick.is_kept:
            return
        tick.is_kept = True
        if self.store is not None:
            self.store = run.hierarchy.jitted(_add, donate=0)(self.store, run.transitions(tick))
        if not run.way.record and run.way.capacity > 1 and run.ahead is None:
            tick.obs = tick.act = None
            tick.step = (None, *tick.step[1:])

    def _restart(self, hierarchy: Hierarchy, mask: np.ndarray) -> None:
        """Reset the instances in `mask` in mid-episode."""
        if not mask.any():
            return
        obs = _merged(mask, self.source.reset_some(mask), self.obs)
        if self.preprocess is not None:
            obs[mask] = self.preprocess.on_reset(obs[mask], self._ids[mask])
        self.obs, self._sums = obs, self._sums.cleared(mask)
        self._put(hierarchy.reset(self.state(), jnp.asarray(mask)))
        if self.store is not None:
            self.store = buffers.cut(self.store, jnp.asarray(mask))

    # ------------------------------------------------- levels that do not look

    def _looks_ahead(self, hierarchy: Hierarchy, way: Way) -> bool:
        """Whether decisions depend on nothing that the ticks of a chunk bring about."""
        blind = hierarchy.n_levels == 1 and hierarchy.levels[0].is_blind
        plain = way.capacity > 1 and way.record != "levels" and not (way.learn or way.random)
        return blind and plain and self.preprocess is None

    def _replay(self, run: _Run, ticks: list[_Tick]) -> None:
        """The bookkeeping of ticks whose actions were drawn ahead."""
        if not ticks:
            return
        padding = run.way.capacity - len(ticks)

        def padded(*arrays):
            stacked = np.stack(arrays)
            return np.pad(stacked, [(0, padding)] + [(0, 0)] * (stacked.ndim - 1))

        columns = jax.tree.map(padded, *((tick.obs, *tick.step) for tick in ticks))
        replay = run.hierarchy.jitted(_replay, self._flat, donate=0)
        self._raw = replay(self._owned(), columns, np.int32(len(ticks)))


def _merged(mask: np.ndarray | None, new: Any, old: Any) -> np.ndarray:
    """New values in the mask [n], all if it is None; old ones elsewhere."""
    return new if mask is None else np.where(wide(mask, new), new, old)


class _Run:
    """What is asked for in one go, and the ticks that were taken for it.

    Attributes:
        hierarchy: acts.
        way: how ticks are taken.
        everyone: whether all instances take each tick.
        levels: whether what each level does is recorded.
        ahead: actions as sent and as decided of all ticks, [capacity, n, ...], where they were
            drawn before the first; else None.
        ticks: those received.
    """

    def __init__(self, hierarchy: Hierarchy, way: Way, everyone: bool):
        self.hierarchy, self.way, self.everyone = hierarchy, way, everyone
        self.levels = way.record == "levels"
        self.ahead: tuple[np.ndarray, np.ndarray] | None = None
        self.ticks: list[_Tick] = []
        self._metrics: list[dict[str, jax.Array]] = []

    def unsettled(self) -> _Tick | None:
        """The last tick, if its bookkeeping is still to be done; from here on it is tried once."""
        last = self.ticks[-1] if self.ticks else None
        if last is None or last.is_settled:
            return None
        last.is_settled = True
        return last

    def settled(self, tick: _Tick, metrics: dict[str, jax.Array], active: Any) -> None:
        """After the hierarchy's bookkeeping of a tick."""
        if metrics:
            self._metrics.append(metrics)
        if tick.levels is not None:
            _, _, terminated, truncated, _ = tick.step
            done = terminated | truncated
            tick.levels = closings(tick.levels, np.asarray(active), done, tick.ready)

    def transitions(self, tick: _Tick) -> Transitions:
        """Of one tick, leaves [n, ...]."""
        obs_next, rew, terminated, truncated, _ = tick.step
        act = tick.act.astype(self.hierarchy.action_space.dtype, copy=False)
        out = Transitions(tick.obs, act, rew, terminated, truncated, obs_next, tick.valid)
        return zeroed(out, tick.ready)

    def result(self, is_whole: bool = True) -> Record:
        """All that was added; numbers alone where an exception takes the place of the rest."""
        ticks, way = self.ticks, self.way
        record = way.record if is_whole else False
        valid = np.stack([tick.valid for tick in ticks])
        rew = np.stack([tick.step[1] for tick in ticks])
        last = ticks[-1]
        return Record(
            episodes=_stacked([tick.episodes for tick in ticks]),
            reward=np.where(valid, rew, 0).sum(1, np.float64),
            steps=valid.sum(1),
            metrics=_stacked(jax.device_get(self._metrics)) if self._metrics else {},
            transitions=_stacked([self.transitions(t) for t in ticks]) if record else None,
            levels=_stacked([tick.levels for tick in ticks]) if record == "levels" else None,
            obs_next=zeroed(last.step[0], last.ready).copy() if way.capacity == 1 else None,
        )


def _stacked(trees: list[Any]) -> Any:
    """Trees of NumPy arrays with an axis of ticks."""
    return jax.tree.map(lambda *x: np.stack(x), *trees)
