"""Environments that step on their own: one future each, or envpool."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lrl_jax.envs.gymnasium_adapter import HostEnv, flatten_batch, success_in


@dataclasses.dataclass
class Answers:
    """Steps that have finished, arrays [m, ...] for the m instances `ids`; see `HostStep`."""

    ids: np.ndarray
    obs_next: np.ndarray
    obs: np.ndarray
    rew: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    infos: list[dict[str, Any]]


class Source(Protocol):
    """Environments that answer when they are ready."""

    n: int
    spec_env: Any  # a Gymnasium environment with the spaces of one instance

    def reset(self, ids: np.ndarray, seed: int | None, **kwargs: Any) -> np.ndarray:
        """Wait for what the instances are doing, forget it, reset them; observations [m, ...]."""
        ...

    def send(self, ids: np.ndarray, actions: np.ndarray) -> None:
        """Begin steps of idle instances."""
        ...

    def receive(self, wait_num: int, timeout: float | None) -> Answers:
        """Wait for `wait_num` steps, or for one if `timeout` seconds have passed."""
        ...

    @property
    def n_busy(self) -> int:
        """Instances whose steps have not been received."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class Futures:
    """A list of environment functions, each environment stepped by a thread of its own.

    Args:
        env_fns: functions without arguments that make one Gymnasium environment each.
        dtype: of the observations.
        processes: whether each environment lives in a process of its own, for environments that
            are busy in Python rather than waiting or computing in C.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Any]], dtype: Any, processes: bool = False):
        make: Callable[..., VectorEnv] = SyncVectorEnv
        if processes:  # not forked: JAX has threads
            make = functools.partial(AsyncVectorEnv, context="forkserver")
        self._envs = [
            HostEnv(make([fn], autoreset_mode=AutoresetMode.DISABLED), dtype) for fn in env_fns
        ]
        self.n = len(self._envs)
        self.spec_env = self._envs[0].vector
        for i, env in enumerate(self._envs):
            for name in ("single_observation_space", "single_action_space"):
                mine, first = getattr(env.vector, name), getattr(self.spec_env, name)
                if mine != first:
                    raise ValueError(
                        f"environment {i} has {name} {mine}, but the first has {first}: all must "
                        f"be alike."
                    )
        self._pool = concurrent.futures.ThreadPoolExecutor(max(1, self.n))
        self._busy: dict[concurrent.futures.Future[Any], int] = {}

    @property
    def n_busy(self) -> int:
        """Instances whose steps have not been received."""
        return len(self._busy)

    def reset(self, ids: np.ndarray, seed: int | None, **kwargs: Any) -> np.ndarray:
        """Wait for what the instances are doing, forget it, reset them; observations [m, ...]."""
        wanted = set(ids.tolist())
        running = [future for future, i in self._busy.items() if i in wanted]
        concurrent.futures.wait(running)
        for future in running:
            del self._busy[future]
            future.result()  # an error in the environment is not forgotten
        seeds = [None if seed is None else seed + int(i) for i in ids]
        resets = [
            self._pool.submit(self._envs[i].reset, each, **kwargs)
            for i, each in zip(ids, seeds, strict=True)
        ]
        return np.concatenate([future.result() for future in resets])

    def send(self, ids: np.ndarray, actions: np.ndarray) -> None:
        """Begin steps of idle instances."""
        for i, action in zip(ids.tolist(), actions, strict=True):
            self._busy[self._pool.submit(self._envs[i].step, action[None])] = i

    def receive(self, wait_num: int, timeout: float | None) -> Answers:
        """Wait for `wait_num` steps, or for one if `timeout` seconds have passed."""
        if not self._busy:
            raise RuntimeError("no step is under way: send actions first.")
        wait_num = min(wait_num, len(self._busy))
        done: set[Any] = {future for future in self._busy if future.done()}
        if len(done) < wait_num:
            done = self._wait(wait_num, timeout)
        finished = sorted(done, key=lambda future: self._busy[future])
        ids = np.array([self._busy.pop(future) for future in finished])
        steps = [future.result() for future in finished]

        def column(name):
            return np.concatenate([getattr(step, name) for step in steps])

        return Answers(
            ids=ids,
            obs_next=column("obs_next"),
            obs=column("obs"),
            rew=column("rew"),
            terminated=column("terminated"),
            truncated=column("truncated"),
            success=np.array([_success(step.info, 1)[0] for step in steps]),
            infos=[step.info for step in steps],
        )

    def _wait(self, wait_num: int, timeout: float | None) -> set[Any]:
        """At least `wait_num` finished futures, or at least one once the time is over."""
        waiting = concurrent.futures.as_completed(list(self._busy), timeout)
        done: set[Any] = set()
        try:
            for future in waiting:
                done.add(future)
                if len(done) >= wait_num:
                    break
        except concurrent.futures.TimeoutError:
            if not done:
                first = concurrent.futures.FIRST_COMPLETED
                done = set(concurrent.futures.wait(self._busy, return_when=first).done)
        return done | {future for future in self._busy if future.done()}

    def close(self) -> None:
        """Wait for what is under way, close the environments."""
        concurrent.futures.wait(self._busy)
        self._busy.clear()
        self._pool.shutdown()
        for env in self._envs:
            env.vector.close()


class Envpool:
    """An envpool environment made with `envpool.make_gymnasium(id, num_envs=, batch_size=)`.

    It resets itself in a step of its own, which is not recorded.

    Args:
        env: the environment.
        dtype: of the observations.
    """

    def __init__(self, env: Any, dtype: Any):
        self._env = env
        self.n = int(env.config["num_envs"])
        self.spec_env = _Spaces(env.observation_space, env.action_space)
        self._dtype = dtype
        self._busy = np.zeros(self.n, bool)
        self._action = np.zeros((self.n, *env.action_space.shape), env.action_space.dtype)

    @property
    def n_busy(self) -> int:
        """Instances whose steps have not been received."""
        return int(self._busy.sum())

    def reset(self, ids: np.ndarray, seed: int | None, **kwargs: Any) -> np.ndarray:
        """Wait for what the instances are doing, forget it, reset them; observations [m, ...]."""
        if seed is not None or kwargs:
            raise ValueError("envpool takes its seed where it is made: envpool.make(id, seed=0).")
        while self._busy[ids].any():
            self._busy[self._recv()[-1]] = False
        return self._fresh(ids)

    def _fresh(self, ids: np.ndarray) -> np.ndarray:
        """Reset idle instances; observations [m, ...] in the order of `ids`."""
        obs, _ = self._env.reset(ids.astype(np.int32))
        return flatten_batch(self.spec_env.observation_space, obs, self._dtype)

    def _recv(self) -> tuple[Any, ...]:
        obs, rew, terminated, truncated, info = self._env.recv()
        ids = np.asarray(info["env_id"])
        obs = flatten_batch(self.spec_env.observation_space, obs, self._dtype)
        return obs, rew, terminated, truncated, info, ids

    def send(self, ids: np.ndarray, actions: np.ndarray) -> None:
        """Begin steps of idle instances."""
        self._env.send(actions.astype(self._action.dtype), ids.astype(np.int32))
        self._busy[ids] = True

    def receive(self, wait_num: int, timeout: float | None) -> Answers:
        """The next batch of steps, of the size that the environment was made with."""
        del wait_num, timeout  # envpool's batch_size says how many
        obs_next, rew, terminated, truncated, info, ids = self._recv()
        self._busy[ids] = False
        obs, done = obs_next, np.asarray(terminated) | np.asarray(truncated)
        if done.any():
            obs = obs_next.copy()
            obs[done] = self._fresh(ids[done])
        return Answers(
            ids=ids,
            obs_next=obs_next,
            obs=obs,
            rew=np.asarray(rew, np.float32),
            terminated=np.asarray(terminated, bool),
            truncated=np.asarray(truncated, bool),
            success=_success(info, len(ids)),
            infos=[info] * len(ids),
        )

    def close(self) -> None:
        """End the environment."""
        self._env.close()


class _Spaces(gymnasium.Env):
    """Only the spaces of one instance."""

    def __init__(self, observation_space: Any, action_space: Any):
        self.observation_space, self.action_space = observation_space, action_space


def _success(info: dict[str, Any], n: int) -> np.ndarray:
    success = success_in(info, n)
    return np.zeros(n, bool) if success is None else success


def make_source(env: Any, dtype: Any, processes: bool) -> Source:
    """The source behind what a user gave.

    Raises:
        TypeError: for what cannot step in part.
    """
    if isinstance(env, AsyncVectorEnv):
        raise TypeError(
            "AsyncVectorEnv steps all of its environments or none: give AsyncCollector the list of "
            "functions that it was made from."
        )
    if isinstance(env, VectorEnv):
        raise TypeError(
            f"{type(env).__name__} steps all of its environments or none: use Collector, or give "
            f"AsyncCollector a list of functions that make one environment each."
        )
    if callable(getattr(env, "recv", None)) and callable(getattr(env, "send", None)):
        return Envpool(env, dtype)
    if isinstance(env, Sequence) and not isinstance(env, str):
        if not env:
            raise ValueError("the list of environment functions is empty: give at least one.")
        if not all(callable(fn) and not isinstance(fn, gymnasium.Env) for fn in env):
            raise TypeError(
                "AsyncCollector takes functions that make environments, such as "
                "[lambda: gymnasium.make(id)] * 8, not environments."
            )
        return Futures(env, dtype, processes)
    raise TypeError(
        f"AsyncCollector takes a list of functions that make Gymnasium environments, or an envpool "
        f"environment, not {type(env).__name__}."
    )
