"""Collector: the host loop that gathers experience, counts it, and lets the hierarchy learn."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrl_jax.buffers import Buffer
from lrl_jax.collectors.counting import Owed, n_open
from lrl_jax.collectors.device_engine import DeviceEngine, Way
from lrl_jax.collectors.host_engine import HostEngine
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.collectors.recording import Record, Store, statistics
from lrl_jax.collectors.rollout import check_env, tick
from lrl_jax.collectors.stats import CollectStats
from lrl_jax.collectors.video import VideoLogger
from lrl_jax.devices import resolve_device
from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.settings import check_int

_MAX_CHUNK = 128  # ticks whose records the device holds at a time
_MAX_STEPS = 1_000_000  # ticks after which a call that counts episodes gives up
_ALLOCATIONS = {"any": "n_episodes", "quota": "n_episodes_quota"}


class Collector:
    """Collects experience with a hierarchy, and lets it learn, test and save on the way.

    Args:
        hierarchy: acts; in train mode it explores, stores and learns.
        env: environment to collect in: gymnax's, or Gymnasium's, single or vector.
        test_env: environment to test in, `env` if None; with its default parameters.
        device: where the state is put; the hierarchy's or the default device if None.
        writer: TensorBoard writer (anything with add_scalar(name, value, step)); the hierarchy's
            if None.
        checkpoint_dir: folder of checkpoints; None for none.
        checkpoint_interval: ticks between checkpoints; None for one at the end only.
        env_params: parameters of a gymnax `env`, its defaults if None.
        n_env_instances: number of instances, n; a Gymnasium environment has its own.
        state: HierarchyState of n instances to start from; a new one if None.
        buffer: rows of a replay buffer of environment transitions that is filled in all that is
            collected, beside the levels' own; or such a buffer to go on with; None for none.
        preprocess_fn: sees all data of the environment first; what it changes is what is acted
            on, stored and counted. Called with keywords, arrays with a leading axis of instances:
            `obs` and `env_id` at a reset; `obs_next`, `rew`, `terminated`, `truncated`, `done`,
            `info`, `act` and `env_id` at a step. It returns a dict of what it changes. It is traced
            in gymnax environments, and gets NumPy arrays in Gymnasium's.
        exploration_noise: whether levels add their training noise also where nothing is learned.

    Attributes:
        state: the HierarchyState, readable and settable.
        buffer: the replay buffer (see `lrl_jax.buffers.stored`), or None.
        collect_step, collect_episode, collect_time: environment steps, finished episodes and
            seconds of all calls since the last `reset_stat`.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any,
        test_env: Any = None,
        device: Any = None,
        writer: Any = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: int | None = None,
        *,
        env_params: Any = None,
        n_env_instances: int | None = None,
        state: HierarchyState | None = None,
        buffer: int | Buffer | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        exploration_noise: bool = False,
    ):
        if not isinstance(hierarchy, Hierarchy):
            raise TypeError(f"hierarchy must be a Hierarchy, got {type(hierarchy).__name__}.")
        self.hierarchy = hierarchy
        self.env, self.test_env = env, test_env if test_env is not None else env
        self.preprocess = None if preprocess_fn is None else Preprocess(preprocess_fn)
        self.writer = writer if writer is not None else hierarchy.writer
        self.device = resolve_device(device) if device is not None else hierarchy.device
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.checkpoint_interval = _interval("checkpoint_interval", checkpoint_interval)
        self.exploration_noise = bool(exploration_noise)
        for name, value, what in (
            ("writer", self.writer, "add_scalar"),
            ("test_env", test_env, "step"),
        ):
            if value is not None and not callable(getattr(value, what, None)):
                raise TypeError(f"{name} has no method {what}: {value!r}.")
        if state is not None and not isinstance(state, HierarchyState):
            raise TypeError(f"state must be a HierarchyState, got {type(state).__name__}.")
        if n_env_instances is None:
            n_env_instances = 1 if state is None else state.n_env_instances
            if is_gymnasium(env):
                n_env_instances = getattr(env, "num_envs", 1)
        self.n_env_instances = check_int("n_env_instances", n_env_instances, 1)
        self.env_params = env_params
        if not is_gymnasium(env) and env_params is None:
            self.env_params = getattr(env, "default_params", None)
        self._engine = self._make_engine(env, self.env_params, self.n_env_instances)
        if test_env is not None:
            params = None if is_gymnasium(test_env) else test_env.default_params
            check_env(hierarchy, test_env, params)
        if buffer is not None:
            self._engine.store = Store.create(hierarchy, self.n_env_instances, buffer)
        if state is not None:
            checks.state_of(state, self.n_env_instances)
        self._initial_state = state
        self._is_reset = False
        self.reset_stat()

    def _make_engine(self, env: Any, params: Any, n: int) -> DeviceEngine | HostEngine:
        check_env(self.hierarchy, env, params)
        if not is_gymnasium(env):
            return DeviceEngine(env, params, n, self.preprocess)
        if params is not None:
            raise ValueError("env_params are for gymnax environments: this one is Gymnasium's.")
        engine = HostEngine(self.hierarchy, env, self.preprocess)
        if engine.n != n:
            raise ValueError(
                f"the environment has {engine.n} instances, but n_env_instances={n}: leave it out."
            )
        return engine

    # ------------------------------------------------------------------ resets

    def reset(
        self,
        seed: int | None = None,
        *,
        reset_buffer: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Start a run: reset the environments, put the hierarchy back to level 0, count anew.

        Args:
            seed: of all random streams, those of the decisions included. None goes on with the
                streams there are (0 at first), so that environments start elsewhere each time.
                Learners and the levels' stored rows are kept; with none yet they are initialised.
            reset_buffer: whether the collector's own buffer is emptied.
            gym_reset_kwargs: further arguments of a Gymnasium environment's reset.
        """
        if seed is not None:
            seed = checks.seed_of("seed", seed)
        state = self._engine.state() if self._is_reset else self._initial_state
        self._engine.reset(self.hierarchy, state, seed, gym_reset_kwargs)
        self._is_reset = True
        if self.device is not None:
            self._engine.set_state(jax.device_put(self._engine.state(), self.device))
        self.reset_stat()
        if reset_buffer:
            self.reset_buffer(keep_statistics=True)

    def settle(self) -> None:
        """Make resets that are due, of instances that sat out or after an error, now."""
        self._ready().settle(self.hierarchy)

    def reset_env(self, gym_reset_kwargs: dict[str, Any] | None = None) -> None:
        """Reset all environments in mid-episode: returns, lengths and trajectories begin anew."""
        self._ready()
        self._engine.reset(self.hierarchy, self._engine.state(), None, gym_reset_kwargs)

    def reset_buffer(self, keep_statistics: bool = False) -> None:
        """Empty the collector's own buffer; the levels' are theirs.

        Args:
            keep_statistics: whether the totals of steps, episodes and time go on.
        """
        if self._engine.store is not None:
            self._engine.store = self._engine.store.cleared()
        if not keep_statistics:
            self.reset_stat()

    def reset_stat(self) -> None:
        """Set the totals of steps, episodes and time to zero; episodes under way go on."""
        self.collect_step, self.collect_episode, self.collect_time = 0, 0, 0.0

    @property
    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the collector goes on."""
        return self._ready().state()

    @state.setter
    def state(self, state: HierarchyState) -> None:
        checks.state_of(state, self.n_env_instances)
        self._ready().set_state(state)

    @property
    def buffer(self) -> Buffer | None:
        """Replay buffer of environment transitions. Stays valid when the collector goes on."""
        store = self._engine.store
        if store is None:
            return None
        return jax.tree.map(jnp.copy, store.buffer)

    @buffer.setter
    def buffer(self, buffer: int | Buffer | None) -> None:
        store = None
        if buffer is not None:
            store = Store.create(self.hierarchy, self.n_env_instances, buffer)
        self._engine.store = store

    def _ready(self) -> DeviceEngine | HostEngine:
        if not self._is_reset:
            self.reset(reset_buffer=False)
        return self._engine

    # -------------------------------------------------------------- collecting

    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = False,
        record_transitions: bool = False,
        learn: bool = False,
        n_steps_start: int = 0,
        log_interval: int = 100,
        test_interval: int | None = None,
        n_test_steps: int = 1000,
        verbose: bool = False,
        post_step_callback: Callable[[int, Any], Any] | None = None,
        video_logger: VideoLogger | None = None,
        *,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        episode_allocation: str = "any",
        max_steps: int | None = None,
    ) -> Any:
        """Collect exactly so many steps or episodes; give one of the three numbers.

        Intervals count ticks (one step of all instances) and are due after step t where
        t % interval == 0, checkpoints also at the end. Scalars are logged at t * n.

        Exactly `n_episodes` episodes count, each from its start to its end, so that short ones are
        not favoured: the first min(n_episodes, n) instances go on with the episode they are in; one
        that finishes starts another as long as fewer than `n_episodes` have been started, and sits
        out after that.

        Args:
            n_steps: number of steps in each instance, those already taken included.
            env_expects_numpy: without a meaning: Gymnasium environments get NumPy arrays.
            record_transitions: also return the transitions, leaves [ticks, n, ...].
            learn: make the updates owed after each tick. Without, and without
                `exploration_noise`, the hierarchy is in eval mode: levels act without noise,
                nothing is stored or counted.
            n_steps_start: steps taken in an earlier run that goes on here.
            log_interval: ticks between writing scalars.
            test_interval: ticks between tests; None for none.
            n_test_steps: ticks of a test.
            verbose: show a progress bar.
            post_step_callback: called with (t, obs_next) after each step; obs_next is the true
                final observation where an episode ended.
            video_logger: gets every frame of instance 0, and its plans in mazes; see VideoLogger.
            n_total_steps: number of steps of all instances together. In the last tick the
                lowest-numbered take what is owed; the others are not touched.
            n_episodes: number of episodes of all instances together.
            random: act uniformly at random; the hierarchy neither sees nor stores anything, and
                starts at level 0 afterwards.
            render: seconds between frames that are shown; None for none.
            no_grad: False lets gradients through, see below.
            gym_reset_kwargs: `options` of resets of single Gymnasium environments on the way.
            episode_allocation: "any": whichever instance is free takes the next episode; "quota":
                instance i takes n_episodes // n of them, or one more, where instances differ.
            max_steps: ticks after which a call that counts episodes gives up, 1,000,000 if None;
                `stats.truncated_by_limit` then says how many were still open.

        With `no_grad=False` in a gymnax environment, `collect(n_steps, record_transitions=True)`
        can be called where `collector.state` holds values that are differentiated: the transitions
        returned carry gradients, as far as environment and levels have them. The collector itself
        stays where it was, its buffer too. Under jit or vmap the statistics know the steps alone.

        Returns:
            CollectStats, or (CollectStats, Transitions).
        """
        del env_expects_numpy
        mode, amount = _asked(n_steps, n_total_steps, n_episodes, episode_allocation)
        start = check_int("n_steps_start", n_steps_start, 0)
        if mode != "n_steps" and start:
            raise ValueError(f"n_steps_start={start} goes with n_steps only.")
        if mode == "n_steps" and start >= amount:
            raise ValueError(f"n_steps_start={start} leaves no step up to n_steps={amount}.")
        if random and learn:
            raise ValueError("random=True leaves the hierarchy alone: it cannot learn=True.")
        if random and not self.hierarchy.action_space.is_bounded:
            raise ValueError(
                f"random actions cannot be drawn from the unbounded {self.hierarchy.action_space}."
            )
        if max_steps is not None:
            max_steps = check_int("max_steps", max_steps, 1)
            if not mode.startswith("n_episodes"):
                raise ValueError("max_steps goes with n_episodes only: other calls end anyway.")
        if render is not None and (
            isinstance(render, bool) or not isinstance(render, int | float) or not render >= 0
        ):
            raise ValueError(f"render={render!r} must be the seconds between frames, at least 0.")
        if post_step_callback is not None and not callable(post_step_callback):
            raise TypeError(f"post_step_callback is not callable: {post_step_callback!r}.")
        _check_video(video_logger)
        intervals = {
            "log": _interval("log_interval", log_interval) if self.writer is not None else None,
            "test": _interval("test_interval", test_interval),
            "checkpoint": self.checkpoint_interval if self.checkpoint_dir is not None else None,
        }
        check_int("n_test_steps", n_test_steps, 1)
        shares_env = self.test_env is self.env and is_gymnasium(self.env)
        if intervals["test"] and shares_env and mode.startswith("n_episodes"):
            raise ValueError(
                "n_episodes with test_interval: each test resets the environment that episodes are "
                "collected in, and they might never end. Give the collector a test_env."
            )
        hierarchy = self.hierarchy
        if not learn and not self.exploration_noise:
            hierarchy = hierarchy.eval()
        if not no_grad:
            others = (random, test_interval, post_step_callback, video_logger, gym_reset_kwargs)
            plain = record_transitions and not learn and not any(others) and render is None
            return self._differentiable(hierarchy, mode, amount - start, plain)
        engine = self._ready()
        _refuse_traced(engine)
        n = self.n_env_instances
        limit = start + (max_steps or _MAX_STEPS)
        if not mode.startswith("n_episodes"):
            limit = amount if mode == "n_steps" else -(-amount // n)
        one_by_one = not (post_step_callback is None and video_logger is None and render is None)
        most = limit - start if mode == "n_steps" else _MAX_CHUNK
        capacity = 1 if one_by_one else max(1, min(_MAX_CHUNK, most, 2**20 // n))
        way = Way(mode, bool(learn), bool(record_transitions), bool(random), capacity)
        owed = engine.begin(hierarchy, Owed.begin(mode, amount - start, n), gym_reset_kwargs)
        records: list[Record] = []
        tests: list[tuple[int, dict[str, Any]]] = []
        t, seconds, n_logged = start, 0.0, 0  # n_logged: records that earlier scalars covered
        shown = _Frames(self.hierarchy, self.env, video_logger, render, plans=not random)
        bar_end = amount if mode == "n_steps" else None
        try:
            with tqdm(total=bar_end, initial=start, disable=not verbose, unit="tick") as progress:
                while t < limit:
                    stop = min([limit, t + capacity, *_next_due(intervals.values(), t)])
                    shown.before(engine, owed)
                    began = time.monotonic()
                    record, owed = engine.run(hierarchy, way, owed, stop - t)
                    seconds += time.monotonic() - began
                    records.append(record)
                    progress.update(record.n_ticks)
                    ended = record.n_ticks < stop - t
                    t += record.n_ticks
                    last = t - 1
                    if one_by_one and record.n_ticks:
                        if post_step_callback is not None:
                            post_step_callback(last, record.obs_next)
                        shown.after(engine, bool(record.ended.done[-1, 0]))
                    if _due(intervals["log"], last) and not ended:
                        self._log(last * n, statistics(records[n_logged:], 0.0))
                        n_logged = len(records)
                    if _due(intervals["test"], last) and not ended:
                        copy = hierarchy.get_copy(engine.state())
                        result = self.test(last, copy, n_test_steps)
                        tests.append((last, result))
                        progress.set_postfix(success=result["test_success_in_ep"], refresh=False)
                    if _due(intervals["checkpoint"], last) and not ended:
                        self.save_checkpoint(t, limit)
                    if ended or not np.any(owed.active):
                        break
        finally:  # also where a callback fails
            engine.end(hierarchy, way, owed)
        due = _due(intervals["checkpoint"], t - 1)
        if self.checkpoint_dir is not None and not due:
            self.save_checkpoint(t, limit)
        still_open = n_open(owed, mode)
        if still_open:
            warnings.warn(
                f"{still_open} episodes were still open after {t} steps of each instance: they are "
                f"not counted. Raise max_steps, or give the environment a time limit.",
                stacklevel=2,
            )
        stats = statistics(records, seconds, still_open)
        stats = dataclasses.replace(stats, tests=tuple(tests))
        self.collect_step += stats.n_collected_steps
        self.collect_episode += stats.n_collected_episodes
        self.collect_time += seconds
        if not record_transitions:
            return stats
        parts = [r.transitions for r in records]
        return stats, jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _differentiable(self, hierarchy, mode, n_ticks, plain):
        engine = self._ready()
        if not isinstance(engine, DeviceEngine):
            raise ValueError("no_grad=False: Gymnasium environments have no gradients.")
        try:
            if mode != "n_steps" or not plain or self.preprocess is not None:
                raise ValueError(
                    "no_grad=False goes with n_steps and record_transitions=True and nothing else, "
                    "without a preprocess_fn: gradients go through a fixed number of ticks to the "
                    "transitions."
                )
            carry = engine.carry
            assert carry is not None
            run = hierarchy.jitted(_recorded_ticks, self.env, n_ticks)
            transitions, ended = run(self.env_params, carry)
        finally:
            engine.drop_traced()
        rew, ended = jax.lax.stop_gradient((transitions.rew, ended))
        n_steps = n_ticks * self.n_env_instances
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((rew, ended))):
            return CollectStats(n_collected_steps=n_steps), transitions
        rew, ended = jax.device_get((rew, ended))
        steps = np.full(n_ticks, self.n_env_instances)
        return statistics([Record(ended, rew.sum(1), steps, {}, None)], 0.0), transitions

    def _log(self, step: int, stats: CollectStats) -> None:
        for name, value in stats.items():
            if value is not None and name not in ("collect_time", "collect_speed"):
                self.writer.add_scalar(f"collect/{name}", value, step)

    def save_checkpoint(self, t: int, n_steps: int) -> Path | None:
        """Save all of the state as `step_{t}`, zero-padded to sort; None without a folder."""
        if self.checkpoint_dir is None:
            return None
        path = self.checkpoint_dir / f"step_{t:0{len(str(n_steps))}d}"
        self.hierarchy.save(self._ready().state(), path)
        return path

    def test(
        self,
        t: int,
        test_state: HierarchyState,
        n_steps: int,
        env_expects_numpy: bool = False,
        video_logger: VideoLogger | None = None,
    ) -> dict[str, Any]:
        """Test from a reset, in eval mode, over the episodes that finish.

        Where a Gymnasium `test_env` is the training environment itself, that is reset again
        afterwards: give the collector a `test_env` of its own.

        Args:
            t: training step, where scalars are logged (times n).
            test_state: state to test, such as `hierarchy.get_copy(state)`; not changed.
            n_steps: ticks.
            env_expects_numpy: without a meaning.
            video_logger: gets every frame of instance 0.

        Returns:
            test_reward (mean per step), test_return (mean of finished episodes), and the
            fractions of finished episodes with success at their last step
            (test_success_frac) and at any step (test_success_in_ep); None without an episode.
        """
        del env_expects_numpy
        n_steps = check_int("n_steps", n_steps, 1)
        if not isinstance(test_state, HierarchyState):
            raise TypeError(
                f"test_state must be a HierarchyState such as hierarchy.get_copy(state), got "
                f"{type(test_state).__name__}."
            )
        _check_video(video_logger)
        hierarchy = self.hierarchy.eval()
        key = jax.random.fold_in(test_state.stream.key, 0x7E57)
        env, n = self.test_env, test_state.n_env_instances
        on_host = is_gymnasium(env)
        if on_host:
            n = getattr(env, "num_envs", 1)
        # The replay takes no part: carrying it would copy it.
        stripped = hierarchy.for_testing(test_state, key, n)
        stripped = stripped.replace(stream=test_state.stream)
        params = None
        if not on_host:
            params = self.env_params if env is self.env else env.default_params
        engine = self._make_engine(env, params, n)
        capacity = 1 if video_logger is not None else min(_MAX_CHUNK, n_steps)
        way = Way(capacity=capacity)
        shown = _Frames(hierarchy, env, video_logger, None)
        records: list[Record] = []
        taken = 0
        try:
            engine.reset(hierarchy, stripped, None, key=key)
            owed = engine.begin(hierarchy, Owed.begin("n_steps", n_steps, n), None)
            while taken < n_steps:
                shown.before(engine, owed)
                record, owed = engine.run(hierarchy, way, owed, min(capacity, n_steps - taken))
                records.append(record)
                taken += record.n_ticks
                shown.after(engine, bool(record.ended.done[-1, 0]))
        finally:
            if on_host and env is self.env and self._is_reset:
                # Elsewhere each time: the test has left the environments' streams where it began.
                seed = jax.random.fold_in(key, self.collect_step & 0x7FFFFFFF)
                self.reset_env({"seed": int(jax.random.randint(seed, (), 0, 2**31 - 1))})
        stats = statistics(records, 0.0)
        result = {
            "test_reward": stats["mean_reward"],
            "test_return": stats["mean_return"],
            "test_success_frac": float(stats.successes_at_end.mean()) if len(stats.lens) else None,
            "test_success_in_ep": stats["success_rate"],
        }
        if self.writer is not None:
            for name, value in result.items():
                if value is not None:
                    self.writer.add_scalar(f"test/{name}", value, t * self.n_env_instances)
        return result


class _Frames:
    """Shows and keeps the frames of instance 0, with its plans where it plans in a maze."""

    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any,
        video: VideoLogger | None,
        render: Any,
        plans: bool = True,
    ):
        self._hierarchy, self._env, self._video, self._render = hierarchy, env, video, render
        self._planned = hierarchy.levels[0].planned_states if plans else None
        self._plan: Any = None
        self._decides, self._obs = False, None
        self._steps = True

    def before(self, engine: Any, owed: Owed) -> None:
        """Before a tick, in which those step that are owed something."""
        if self._video is None and self._render is None:
            return
        self._steps = bool(owed.active[0])
        can_plan = self._planned is not None and hasattr(self._env, "layout")
        if not self._steps or self._video is None or not can_plan:
            return
        state = engine.state()
        self._decides = int(state.active_level[0]) == 0
        self._obs = self._hierarchy.see(0, jnp.asarray(engine.obs)[:1])[0]

    def after(self, engine: Any, ended: bool) -> None:
        """After a tick; `ended`: whether it ended instance 0's episode."""
        if not self._steps:
            return
        if ended:  # the next episode is shown, which has no plan yet
            self._plan, self._decides = None, False
        if self._decides:
            level = engine.state().levels[0]
            memory = jax.tree.map(lambda x: x[0], level.memory)
            plan = self._hierarchy.jitted(_planned)(level.learner, memory, self._obs)
            self._plan = np.asarray(plan)
            self._decides = False
        if self._video is not None:
            plan = () if self._plan is None else (self._plan,)
            self._video.record(self._env, engine.frame(), *plan)
        if self._render is not None:
            _show(self._env, engine.frame())
            time.sleep(self._render)


def _check_video(video_logger: Any) -> None:
    if video_logger is not None and not callable(getattr(video_logger, "record", None)):
        raise TypeError(
            f"video_logger has no method record: {video_logger!r}. Give VideoLogger(path)."
        )


def _recorded_ticks(hierarchy, env, n_ticks, params, carry):
    """Transitions and ends of episodes, leaves [n_ticks, n, ...]."""

    def step(carry, _):
        carry, transitions, ended = tick(hierarchy, env, params, carry)
        return carry, (transitions, ended)

    return jax.lax.scan(step, carry, length=n_ticks)[1]


def _planned(hierarchy, learner, memory, obs):
    return hierarchy.levels[0].planned_states(learner, memory, obs)


def _show(env: Any, env_state: Any) -> None:
    """Show a frame: Gymnasium environments do so themselves, others in a matplotlib window."""
    if is_gymnasium(env):
        env.render()
        return
    if not callable(getattr(env, "render", None)):
        raise TypeError(f"{type(env).__name__} cannot be rendered: it has no method render(state).")
    import matplotlib.pyplot as plt

    plt.imshow(np.asarray(env.render(env_state)))
    plt.axis("off")
    plt.pause(0.001)
    plt.clf()


def _asked(n_steps: Any, n_total_steps: Any, n_episodes: Any, allocation: str) -> tuple[str, int]:
    """Mode of counting and the number asked for."""
    given = {"n_steps": n_steps, "n_total_steps": n_total_steps, "n_episodes": n_episodes}
    numbers = {name: value for name, value in given.items() if value is not None}
    if len(numbers) != 1:
        raise ValueError(
            f"give exactly one of n_steps, n_total_steps and n_episodes, got "
            f"{numbers or 'none of them'}."
        )
    ((mode, value),) = numbers.items()
    if allocation not in _ALLOCATIONS:
        raise ValueError(
            f"episode_allocation={allocation!r} is unknown: use one of {sorted(_ALLOCATIONS)}."
        )
    if mode != "n_episodes" and allocation != "any":
        raise ValueError(f"episode_allocation={allocation!r} goes with n_episodes only.")
    amount = check_int(mode, value, 1)
    return (_ALLOCATIONS[allocation] if mode == "n_episodes" else mode), amount


def _refuse_traced(engine: Any) -> None:
    if isinstance(engine, DeviceEngine) and engine.is_traced:
        engine.drop_traced()
        raise ValueError(
            "the state is being differentiated or traced: pass no_grad=False with n_steps and "
            "record_transitions=True, or use lrl_jax.rollout, which is pure."
        )


def _interval(name: str, value: int | None) -> int | None:
    return None if value is None else check_int(name, value, 1)


def _due(interval: int | None, t: int) -> bool:
    return interval is not None and t >= 0 and t % interval == 0


def _next_due(intervals: Any, t: int) -> list[int]:
    """For each interval the first number of ticks above t after which something is due."""
    return [-(-t // i) * i + 1 for i in intervals if i is not None]
