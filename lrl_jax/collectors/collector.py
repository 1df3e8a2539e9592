"""Collector: the host loop that gathers experience in chunks of jitted ticks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrl_jax.collectors.rollout import (
    RolloutCarry,
    Transitions,
    check_env,
    init_carry,
    mean_over_updates,
    tick,
)
from lrl_jax.collectors.stats import CollectStats
from lrl_jax.devices import resolve_device
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.hierarchies.env_spec import is_gymnasium
from lrl_jax.randomness import Stream

_MAX_CHUNK = 128  # ticks whose records the device holds at a time


def _chunk(hierarchy, env, capacity, learn, record, params, carry, n_ticks):
    """Up to `capacity` ticks, their number traced, so that any number compiles once.

    Returns the carry and what was recorded, leaves [capacity, ...], zero behind `n_ticks`.
    """

    def step(carry):
        carry, transitions, ended = tick(hierarchy, env, params, carry)
        metrics = {}
        if learn:
            state, metrics = hierarchy.learn(carry.hierarchy)
            carry = carry.replace(hierarchy=state)
        return carry, {
            "ended": ended,
            "reward": transitions.rew.sum(),
            "metrics": metrics,
            "transitions": transitions if record else None,
            "obs_next": transitions.obs_next if capacity == 1 else None,
        }

    def body(i, loop):
        carry, out = loop
        carry, new = step(carry)
        out = jax.tree.map(
            lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, i, 0), out, new
        )
        return carry, out

    _, shapes = jax.eval_shape(step, carry)
    out = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, n_ticks, body, (carry, out))


class Collector:
    """Collects experience with a hierarchy, and lets it learn, test and save on the way.

    Args:
        hierarchy: acts; in train mode it explores, stores and learns.
        env: gymnax environment to collect in.
        test_env: environment to test in, `env` if None; with its default parameters.
        device: where the state is put; the hierarchy's or the default device if None.
        writer: TensorBoard writer (anything with add_scalar(name, value, step)); the hierarchy's
            if None.
        checkpoint_dir: folder of checkpoints; None for none.
        checkpoint_interval: ticks between checkpoints; None for one at the end only.
        env_params: parameters of `env`, its defaults if None.
        n_env_instances: number of instances, n.
        state: HierarchyState of n instances to start from; a new one if None.
        exploration_noise: whether levels add their training noise also where nothing is learned.

    Attributes:
        state: the HierarchyState, readable and settable.
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
        exploration_noise: bool = False,
    ):
        if not isinstance(hierarchy, Hierarchy):
            raise TypeError(f"hierarchy must be a Hierarchy, got {type(hierarchy).__name__}.")
        for each in (env, test_env):
            if each is not None and is_gymnasium(each):
                raise TypeError(
                    f"{type(each).__name__} is a Gymnasium environment; this Collector runs gymnax "
                    f"environments, such as lrl_jax.make(id) returns."
                )
        self.env, self.test_env = env, test_env if test_env is not None else env
        self.env_params = env.default_params if env_params is None else env_params
        self.test_params = self.env_params if test_env is None else test_env.default_params
        check_env(hierarchy, self.env, self.env_params)
        check_env(hierarchy, self.test_env, self.test_params)
        self.hierarchy = hierarchy
        self.writer = writer if writer is not None else hierarchy.writer
        self.device = resolve_device(device) if device is not None else hierarchy.device
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.checkpoint_interval = _interval("checkpoint_interval", checkpoint_interval)
        self.exploration_noise = bool(exploration_noise)
        if n_env_instances is None:
            n_env_instances = 1 if state is None else state.n_env_instances
        self.n_env_instances = checks.whole_number("n_env_instances", n_env_instances, 1)
        self._initial_state = state
        self._carry: RolloutCarry | None = None
        self._shared = False  # somebody else may hold the arrays of the carry

    def reset(self, seed: int | None = None) -> None:
        """Start a run: reset the environments and put the hierarchy back to level 0.

        Args:
            seed: of all random streams, those of the decisions included. None goes on with the
                streams there are (0 at first), so that environments start elsewhere each time.
                Learners and stored rows are kept; with none yet they are initialised.
        """
        state = self._initial_state if self._carry is None else self._carry.hierarchy
        if seed is not None:
            key = jax.random.key(checks.whole_number("seed", seed, 0))
        elif self._carry is None:
            key = jax.random.key(0)
        else:
            key = self._carry.stream.tick_key(255)
        carry = init_carry(
            self.hierarchy,
            self.env,
            self.env_params,
            key,
            self.n_env_instances,
            state,
        )
        if seed is not None:
            stream = Stream.create(jax.random.fold_in(key, 0xDEC1))
            carry = carry.replace(hierarchy=carry.hierarchy.replace(stream=stream))
        self._carry = carry if self.device is None else jax.device_put(carry, self.device)
        self._shared = True

    @property
    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the collector goes on."""
        self._shared = True
        return self._ready().hierarchy

    @state.setter
    def state(self, state: HierarchyState) -> None:
        carry = self._ready()
        if state.n_env_instances != self.n_env_instances:
            raise ValueError(
                f"the state has {state.n_env_instances} instances, the collector "
                f"{self.n_env_instances}: use hierarchy.set_n_env_instances."
            )
        self._shared = True
        self._carry = carry.replace(hierarchy=state)

    def _ready(self) -> RolloutCarry:
        if self._carry is None:
            self.reset()
        assert self._carry is not None
        return self._carry

    def collect(
        self,
        n_steps: int,
        env_expects_numpy: bool = False,
        record_transitions: bool = False,
        learn: bool = False,
        n_steps_start: int = 0,
        log_interval: int = 100,
        test_interval: int | None = None,
        n_test_steps: int = 1000,
        verbose: bool = False,
        post_step_callback: Callable[[int, jax.Array], Any] | None = None,
        video_logger: Any = None,
    ) -> CollectStats | tuple[CollectStats, Transitions]:
        """Take the steps numbered n_steps_start to n_steps - 1 in every instance.

        Intervals count ticks and are due after step t where t % interval == 0, checkpoints also
        at the end. Scalars are logged at t * n.

        Args:
            n_steps: number of steps in each instance, those already taken included.
            env_expects_numpy: for Gymnasium environments; without a meaning here.
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
            video_logger: gets every frame of instance 0; see VideoLogger.

        Returns:
            CollectStats, or (CollectStats, Transitions).
        """
        del env_expects_numpy
        n_steps = checks.whole_number("n_steps", n_steps, 1)
        start = checks.whole_number("n_steps_start", n_steps_start, 0)
        if start >= n_steps:
            raise ValueError(f"n_steps_start={start} leaves no step up to n_steps={n_steps}.")
        intervals = {
            "log": _interval("log_interval", log_interval) if self.writer is not None else None,
            "test": _interval("test_interval", test_interval),
            "checkpoint": self.checkpoint_interval if self.checkpoint_dir is not None else None,
        }
        checks.whole_number("n_test_steps", n_test_steps, 1)
        hierarchy = self.hierarchy
        if not learn and not self.exploration_noise:
            hierarchy = hierarchy.eval()
        one_by_one = post_step_callback is not None or video_logger is not None
        n = self.n_env_instances
        capacity = 1 if one_by_one else max(1, min(_MAX_CHUNK, n_steps - start, 2**20 // n))
        run = hierarchy.jitted(
            _chunk, self.env, capacity, bool(learn), record_transitions, donate=1
        )
        chunks, tests, t, seconds = [], [], start, 0.0
        n_logged = 0  # chunks that earlier scalars covered
        with tqdm(total=n_steps, initial=start, disable=not verbose, unit="tick") as progress:
            while t < n_steps:
                stop = min([n_steps, t + capacity, *_next_due(intervals.values(), t)])
                began = time.monotonic()
                chunk = self._advance(run, stop - t)
                seconds += time.monotonic() - began
                chunks.append(chunk)
                progress.update(stop - t)
                t = stop
                last = t - 1
                if post_step_callback is not None:
                    post_step_callback(last, jnp.asarray(chunk["obs_next"][0]))
                if video_logger is not None:
                    video_logger.record(
                        self.env, jax.tree.map(lambda x: x[0], self._ready().env_state)
                    )
                if _due(intervals["log"], last):
                    self._log(last * n, _stats(chunks[n_logged:], n, 0.0))
                    n_logged = len(chunks)
                if _due(intervals["test"], last):
                    result = self.test(
                        last, hierarchy.get_copy(self._ready().hierarchy), n_test_steps
                    )
                    tests.append((last, result))
                    progress.set_postfix(success=result["test_success_in_ep"], refresh=False)
                if _due(intervals["checkpoint"], last) or t == n_steps:
                    self.save_checkpoint(t, n_steps)
        stats = _stats(chunks, n, seconds)
        stats = dataclasses.replace(stats, tests=tuple(tests))
        if not record_transitions:
            return stats
        parts = [c["transitions"] for c in chunks]
        return stats, jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _advance(self, run: Callable, n_ticks: int) -> dict[str, Any]:
        """Run a chunk on the state the collector owns; returns its record on the host."""
        carry = self._ready()
        if self._shared:
            carry = jax.tree.map(jnp.copy, carry)
            self._shared = False
        self._carry, out = run(self.env_params, carry, jnp.asarray(n_ticks, jnp.int32))
        return jax.tree.map(lambda x: x[:n_ticks], jax.device_get(out)) | {"n_ticks": n_ticks}

    def _log(self, step: int, stats: CollectStats) -> None:
        for name, value in stats.items():
            if value is not None and name not in ("collect_time", "collect_speed"):
                self.writer.add_scalar(f"collect/{name}", value, step)

    def save_checkpoint(self, t: int, n_steps: int) -> Path | None:
        """Save all of the state as `step_{t}`, zero-padded to sort; None without a folder."""
        if self.checkpoint_dir is None:
            return None
        path = self.checkpoint_dir / f"step_{t:0{len(str(n_steps))}d}"
        self.hierarchy.save(self._ready().hierarchy, path)
        return path

    def test(
        self,
        t: int,
        test_state: HierarchyState,
        n_steps: int,
        env_expects_numpy: bool = False,
        video_logger: Any = None,
    ) -> dict[str, Any]:
        """Test from a reset, in eval mode, over the episodes that finish.

        Args:
            t: training step, where scalars are logged (times n).
            test_state: state to test, such as `hierarchy.get_copy(state)`; not changed.
            n_steps: ticks.
            env_expects_numpy: without a meaning here.
            video_logger: gets every frame of instance 0.

        Returns:
            test_reward (mean per step), test_return (mean of finished episodes), and the
            fractions of finished episodes with success at their last step
            (test_success_frac) and at any step (test_success_in_ep); None without an episode.
        """
        del env_expects_numpy
        n_steps = checks.whole_number("n_steps", n_steps, 1)
        hierarchy, n = self.hierarchy.eval(), test_state.n_env_instances
        key = jax.random.fold_in(test_state.stream.key, 0x7E57)
        carry = init_carry(hierarchy, self.test_env, self.test_params, key, n, test_state)
        # The replay takes no part: carrying it would copy it.
        levels = tuple(s.replace(buffer=None) for s in carry.hierarchy.levels)
        carry = carry.replace(hierarchy=carry.hierarchy.replace(levels=levels))
        capacity = 1 if video_logger is not None else min(_MAX_CHUNK, n_steps)
        run = hierarchy.jitted(_chunk, self.test_env, capacity, False, False)
        chunks = []
        for first in range(0, n_steps, capacity):
            n_ticks = min(capacity, n_steps - first)
            carry, out = run(self.test_params, carry, jnp.asarray(n_ticks, jnp.int32))
            chunks.append(
                jax.tree.map(lambda x, k=n_ticks: x[:k], jax.device_get(out)) | {"n_ticks": n_ticks}
            )
            if video_logger is not None:
                video_logger.record(self.test_env, jax.tree.map(lambda x: x[0], carry.env_state))
        stats = _stats(chunks, n, 0.0)
        ends = np.concatenate([c["ended"].success_at_end[c["ended"].done] for c in chunks])
        result = {
            "test_reward": stats["mean_reward"],
            "test_return": stats["mean_return"],
            "test_success_frac": float(ends.mean()) if len(ends) else None,
            "test_success_in_ep": stats["success_rate"],
        }
        if self.writer is not None:
            for name, value in result.items():
                if value is not None:
                    self.writer.add_scalar(f"test/{name}", value, t * self.n_env_instances)
        return result


def _interval(name: str, value: int | None) -> int | None:
    return None if value is None else checks.whole_number(name, value, 1)


def _due(interval: int | None, t: int) -> bool:
    return interval is not None and t % interval == 0


def _next_due(intervals: Any, t: int) -> list[int]:
    """For each interval the first number of ticks above t after which something is due."""
    return [-(-t // i) * i + 1 for i in intervals if i is not None]


def _stats(chunks: list[dict[str, Any]], n: int, seconds: float) -> CollectStats:
    """Statistics of chunks recorded by `_chunk`, on the host."""
    ended = [c["ended"] for c in chunks]

    def finished(name):
        return np.concatenate([getattr(e, name)[e.done] for e in ended])

    n_steps = sum(c["n_ticks"] for c in chunks) * n
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[c["metrics"] for c in chunks])
    returns = finished("episode_return")
    return CollectStats(
        n_collected_episodes=len(returns),
        n_collected_steps=n_steps,
        collect_time=seconds,
        collect_speed=n_steps / seconds if seconds else 0.0,
        returns=returns,
        lens=finished("length"),
        successes=finished("success"),
        mean_reward=float(sum(c["reward"].sum() for c in chunks) / n_steps),
        learning={k: float(v) for k, v in mean_over_updates(joined).items()},
    )
