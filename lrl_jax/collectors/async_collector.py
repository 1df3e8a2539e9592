"""AsyncCollector: whoever is ready goes on, nobody waits for the slowest environment."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lrl_jax.buffers import Buffer
from lrl_jax.collectors.async_sources import Answers, Envpool, Source, make_source
from lrl_jax.collectors.counting import Owed, n_open
from lrl_jax.collectors.preprocess import Preprocess, reset_arguments
from lrl_jax.collectors.recording import Record, Store, statistics
from lrl_jax.collectors.rollout import Ended, Transitions, check_env
from lrl_jax.envs.gymnasium_adapter import success_in
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.randomness import Stream
from lrl_jax.settings import check_float, check_int
from lrl_jax.spaces import Box

_MAX_STEPS = 1_000_000


def _decide(hierarchy, state, obs, mask):
    state, action = hierarchy.get_action(state, obs, mask)
    return state, action, hierarchy.action_space.clip(action)


def _settle(hierarchy, learn, state, obs_next, rew, terminated, truncated, mask):
    state = hierarchy.process_transition(state, obs_next, rew, terminated, truncated, mask)
    return hierarchy.learn(state) if learn else (state, {})


def _add(hierarchy, store, transitions):
    del hierarchy
    return store.add(transitions)


class AsyncCollector:
    """Collects from environments that step on their own; only those that are ready go on.

    Args:
        hierarchy: acts; built for one of the environments.
        env: a list of functions that make one Gymnasium environment each (one thread each), or an
            envpool environment (extra "envpool").
        wait_num: steps to wait for before those that are ready decide again; all if None. envpool
            has its own `batch_size` for that.
        timeout: seconds after which one step is enough; None for never.
        buffer: rows of a replay buffer of environment transitions, or such a buffer to go on with;
            None for none.
        preprocess_fn, exploration_noise: see `Collector`.
        state: HierarchyState of as many instances to start from; a new one if None.
        processes: whether each environment of a list lives in a process of its own, for
            environments that are busy in Python.

    Attributes:
        state: the HierarchyState, readable and settable.
        buffer: the replay buffer, or None.
        collect_step, collect_episode, collect_time: totals since the last `reset_stat`.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any,
        wait_num: int | None = None,
        timeout: float | None = None,
        *,
        buffer: int | Buffer | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        exploration_noise: bool = False,
        state: HierarchyState | None = None,
        processes: bool = False,
    ):
        if not isinstance(hierarchy, Hierarchy):
            raise TypeError(f"hierarchy must be a Hierarchy, got {type(hierarchy).__name__}.")
        if any(getattr(level, "stagger", False) for level in hierarchy.levels):
            raise ValueError(
                "stagger=True sets the clocks of environments, which Gymnasium's do not show: "
                "switch it off."
            )
        self.hierarchy = hierarchy
        self._dtype = np.dtype(hierarchy.env_spec.obs_space.dtype)
        self._source: Source = make_source(env, self._dtype, processes)
        self.n_env_instances = n = self._source.n
        try:
            check_env(hierarchy, self._source.spec_env, None)
            self.wait_num = n if wait_num is None else check_int("wait_num", wait_num, 1)
            if self.wait_num > n:
                raise ValueError(f"wait_num={wait_num}, but there are {n} environments.")
            if isinstance(self._source, Envpool) and not (wait_num is None and timeout is None):
                raise ValueError(
                    "wait_num and timeout are for lists of functions: envpool waits for the "
                    "batch_size that it was made with."
                )
            if timeout is not None:
                check_float("timeout", timeout, 0.0, above=True)
            self.preprocess = None if preprocess_fn is None else Preprocess(preprocess_fn)
            self._store = None if buffer is None else Store.create(hierarchy, n, buffer)
            if state is not None:
                checks.state_of(state, n)
        except BaseException:
            self._source.close()
            raise
        self.timeout = timeout
        self.exploration_noise = bool(exploration_noise)
        self._initial_state, self._state = state, None
        self._closed = False
        # An error has left observations and sums that do not belong together: all are reset first.
        self._broken = False
        self._ids = np.arange(n)
        self._rng = np.random.default_rng(0)
        obs_space, action_space = hierarchy.env_spec.obs_space, hierarchy.action_space
        self._obs = np.zeros((n, *obs_space.shape), self._dtype)
        self._act = np.zeros((n, *action_space.shape), action_space.dtype)
        self._acted_on = np.zeros_like(self._obs)  # what the step under way was decided on
        self._busy = np.zeros(n, bool)
        self._random = np.zeros(n, bool)  # whether the step under way was drawn at random
        self._returns = np.zeros(n, np.float32)
        self._lengths = np.zeros(n, np.int32)
        self._success = np.zeros(n, bool)
        self.reset_stat()

    # ------------------------------------------------------------------ resets

    def reset(
        self,
        seed: int | None = None,
        *,
        reset_buffer: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Reset environments, hierarchy and totals; steps under way are waited for and forgotten.

        Args:
            seed: of all random streams; None goes on with those there are.
            reset_buffer: whether the collector's own buffer is emptied.
            gym_reset_kwargs: further arguments of the environments' reset.
        """
        hierarchy, n = self.hierarchy, self.n_env_instances
        self._check_open()
        env_seed = 0 if seed is None and self._state is None else seed
        state = self._state if self._state is not None else self._initial_state
        key = jax.random.key(0 if seed is None else checks.seed_of("seed", seed))
        if state is None:
            state = hierarchy.init(jax.random.split(key, 3)[2], n)
        else:
            state = hierarchy.reset(state)
        if seed is not None:
            state = state.replace(stream=Stream.create(jax.random.fold_in(key, 0xDEC1)))
            self._rng = np.random.default_rng(seed)
        kwargs = reset_arguments(gym_reset_kwargs)
        env_seed = kwargs.pop("seed", env_seed)
        if env_seed is not None:
            env_seed = checks.seed_of('gym_reset_kwargs["seed"]', env_seed)
        self._state, self._broken = state, True  # until all of this is done
        for sums in (self._returns, self._lengths, self._success, self._busy):
            sums[:] = 0
        if self._store is not None:
            self._store = self._store.cut()
        obs = self._source.reset(self._ids, env_seed, **kwargs)
        if self.preprocess is not None:
            obs = self.preprocess.on_reset(obs, self._ids)
        self._obs[:] = obs
        self._broken = False
        self.reset_stat()
        if reset_buffer:
            self.reset_buffer(keep_statistics=True)

    def reset_env(self, gym_reset_kwargs: dict[str, Any] | None = None) -> None:
        """Reset all environments; those that are stepping are waited for first."""
        totals = self.collect_step, self.collect_episode, self.collect_time
        self.reset(reset_buffer=False, gym_reset_kwargs=gym_reset_kwargs)
        self.collect_step, self.collect_episode, self.collect_time = totals

    def reset_buffer(self, keep_statistics: bool = False) -> None:
        """Empty the collector's own buffer, and the totals unless `keep_statistics`."""
        if self._store is not None:
            self._store = self._store.cleared()
        if not keep_statistics:
            self.reset_stat()

    def reset_stat(self) -> None:
        """Set the totals of steps, episodes and time to zero."""
        self.collect_step, self.collect_episode, self.collect_time = 0, 0, 0.0

    def close(self) -> None:
        """Wait for steps under way and close the environments."""
        if not self._closed:
            self._closed = True
            self._source.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the collector was closed: make another one.")

    def __enter__(self) -> AsyncCollector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> HierarchyState:
        """State of the hierarchy."""
        if self._state is None:
            self.reset(reset_buffer=False)
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: HierarchyState) -> None:
        checks.state_of(state, self.n_env_instances)
        if self._state is None:
            self.reset(reset_buffer=False)
        # It knows nothing of what is under way: what follows does not continue its rows.
        self._state = self.hierarchy.reset(state, self._busy)
        self._random |= self._busy

    @property
    def buffer(self) -> Buffer | None:
        """Replay buffer of environment transitions."""
        return None if self._store is None else self._store.buffer

    # -------------------------------------------------------------- collecting

    def collect(
        self,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        *,
        learn: bool = False,
        record_transitions: bool = False,
        max_steps: int | None = None,
    ) -> Any:
        """Collect at least so many steps, or exactly so many episodes; give one of the numbers.

        Steps are counted when they are received; several may arrive at once, so that more than
        `n_total_steps` may be collected: `stats.n_steps_beyond` says how many more. Steps still
        under way at the end are received by the next call. Episodes are counted as in `Collector`.

        Args:
            n_total_steps: number of steps of all instances together.
            n_episodes: number of episodes of all instances together.
            random: act uniformly at random; the hierarchy neither sees nor stores anything.
            render, no_grad: only their defaults have a meaning here.
            gym_reset_kwargs: if given, all environments are reset with it first.
            learn: make the updates owed after each batch of steps received.
            record_transitions: also return the transitions, leaves [batches, n, ...].
            max_steps: batches after which a call that counts episodes gives up.

        Returns:
            CollectStats, or (CollectStats, Transitions).
        """
        given = {"n_total_steps": n_total_steps, "n_episodes": n_episodes}
        numbers = {name: value for name, value in given.items() if value is not None}
        if len(numbers) != 1:
            raise ValueError(
                f"give exactly one of n_total_steps and n_episodes, got {numbers or 'none'}."
            )
        ((mode, value),) = numbers.items()
        amount = check_int(mode, value, 1)
        if render is not None or not no_grad:
            raise ValueError(
                "environments that step on their own are neither rendered nor differentiated: use "
                "Collector for render and no_grad=False."
            )
        if random and learn:
            raise ValueError("random=True leaves the hierarchy alone: it cannot learn=True.")
        if random and not self.hierarchy.action_space.is_bounded:
            raise ValueError(
                f"random actions cannot be drawn from the unbounded {self.hierarchy.action_space}."
            )
        counts_steps = mode == "n_total_steps"
        if max_steps is not None:
            max_steps = check_int("max_steps", max_steps, 1)
            if counts_steps:
                raise ValueError("max_steps goes with n_episodes only: other calls end anyway.")
        self._check_open()
        if gym_reset_kwargs is not None or self._source.spoiled or self._broken:
            self.reset_env(gym_reset_kwargs)
        hierarchy = self.hierarchy
        if not learn and not self.exploration_noise:
            hierarchy = hierarchy.eval()
        _ = self.state
        run = _Run(self, hierarchy, random, learn, record_transitions)
        limit = math.inf if counts_steps else max_steps or _MAX_STEPS
        # Every instance may take a step that is owed; episodes are given out by the rule.
        owed = Owed.begin("n_steps" if counts_steps else mode, amount, self.n_env_instances)
        taken, began = 0, time.monotonic()
        try:
            run.send(owed.active & ~self._busy)
            while taken < amount if counts_steps else owed.active.any():
                if len(run.records) >= limit:
                    break
                ready, ended = run.receive(owed.active)
                taken += int(ready.sum())
                if not counts_steps:
                    owed = owed.after(mode, ended & owed.active)
                elif taken >= amount:
                    break
                run.send(owed.active & ~self._busy)
        except BaseException:
            self._broken = True
            raise
        seconds = time.monotonic() - began
        if random:
            self._state = hierarchy.reset(self.state)
            self._random |= self._busy  # the hierarchy has forgotten what is under way
        still_open = n_open(owed, mode)
        if still_open:
            warnings.warn(
                f"{still_open} episodes were still open after {len(run.records)} batches of steps: "
                f"they are not counted. Raise max_steps.",
                stacklevel=2,
            )
        beyond = max(0, taken - amount) if counts_steps else 0
        stats = statistics(run.records, seconds, still_open, beyond)
        self.collect_step += stats.n_collected_steps
        self.collect_episode += stats.n_collected_episodes
        self.collect_time += seconds
        if not record_transitions:
            return stats
        parts = [record.transitions for record in run.records]
        return stats, jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _settled(self, answers: Answers) -> tuple[np.ndarray, ...]:
        """Arrays [n, ...] of a batch of answers, after the user's function."""
        ids = answers.ids
        obs_next, rew = answers.obs_next, answers.rew
        terminated, truncated = answers.terminated, answers.truncated
        act, success, following = self._act[ids], answers.success, answers.obs
        if self.preprocess is not None:
            before = terminated | truncated
            info = {**answers.info, "is_success": success}
            obs_next, rew, terminated, truncated, info, act, _ = self.preprocess.on_step(
                obs_next, rew, terminated, truncated, info, act, ids
            )
            seen = success_in(info, len(ids))
            success = success if seen is None else seen
            done = terminated | truncated
            early = done & ~before
            following = np.where(_wide(done, following), following, obs_next)
            if early.any():
                following = following.copy()
                following[early] = self._source.reset(ids[early], None)
            if done.any():
                following[done] = self.preprocess.on_reset(following[done], ids[done])
        n = self.n_env_instances
        spread = []
        for values in (obs_next, rew, terminated, truncated, success):
            array = np.zeros((n, *values.shape[1:]), values.dtype)
            array[ids] = values
            spread.append(array)
        self._act[ids] = act
        self._obs[ids] = following
        return tuple(spread)


class _Run:
    """One call of `AsyncCollector.collect`."""

    def __init__(
        self, collector: AsyncCollector, hierarchy: Hierarchy, random: bool, learn: bool, keep: bool
    ):
        self.c, self.hierarchy, self.random, self.learn, self.keep = (
            collector,
            hierarchy,
            random,
            learn,
            keep,
        )
        self.records: list[Record] = []

    def send(self, mask: np.ndarray) -> None:
        """Let the idle instances in `mask` decide and step."""
        if not mask.any():
            return
        c, ids = self.c, np.flatnonzero(mask)
        if self.random:
            space = self.hierarchy.action_space
            shape = (len(ids), *space.shape)
            if isinstance(space, Box):
                drawn = c._rng.uniform(space.low_array, space.high_array, shape)
            else:
                drawn = c._rng.integers(0, space.n, shape)
            actions = drawn.astype(space.dtype)
            c._act[ids] = actions
        else:
            decide = self.hierarchy.jitted(_decide)
            c._state, act, sent = decide(c._state, c._obs.copy(), mask)
            c._act[ids] = np.asarray(act)[ids]
            actions = np.asarray(sent)[ids]
        c._acted_on[ids] = c._obs[ids]
        c._busy[ids] = True
        c._random[ids] = self.random
        c._source.send(ids, actions)

    def receive(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Wait for steps and settle them. Returns who was ready and whose episode ended."""
        c, n = self.c, self.c.n_env_instances
        answers = c._source.receive(c.wait_num, c.timeout)
        ready = np.zeros(n, bool)
        ready[answers.ids] = True
        c._busy[ready] = False
        acted_on = c._acted_on.copy()
        obs_next, rew, terminated, truncated, success = c._settled(answers)
        metrics: dict[str, Any] = {}
        decided = ready & ~c._random
        if decided.any() and not self.random:
            settle = self.hierarchy.jitted(_settle, self.learn)
            c._state, metrics = settle(c._state, obs_next, rew, terminated, truncated, decided)
            metrics = jax.device_get(metrics)
        counted = ready & active
        c._returns += rew
        c._lengths += ready
        c._success |= success & ready
        done = (terminated | truncated) & ready
        counts = done & counted
        ended = Ended(
            done=counts[None],
            episode_return=np.where(counts, c._returns, 0)[None],
            length=np.where(counts, c._lengths, 0)[None],
            success=(counts & c._success)[None],
            success_at_end=(counts & success)[None],
        )
        for sums in (c._returns, c._lengths, c._success):
            sums[done] = 0
        transitions = Transitions(
            obs=_masked(acted_on, ready),
            act=_masked(c._act, ready),
            rew=rew,
            terminated=terminated,
            truncated=truncated,
            obs_next=obs_next,
            valid=ready,
        )
        if c._store is not None:
            c._store = self.hierarchy.jitted(_add)(c._store, transitions)
        self.records.append(
            Record(
                ended=ended,
                reward=np.array([float(rew.sum())]),
                steps=np.array([int(ready.sum())]),
                metrics=jax.tree.map(lambda x: np.asarray(x)[None], metrics),
                transitions=jax.tree.map(lambda x: x[None], transitions) if self.keep else None,
            )
        )
        return ready, done


def _masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy, zero outside the mask."""
    return np.where(_wide(mask, x), x, np.zeros((), x.dtype))


def _wide(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (like.ndim - 1))
