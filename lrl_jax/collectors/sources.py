"""Environments on the host that step on their own: one future per environment, or envpool."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lrl_jax import interrupts
from lrl_jax.envs.gymnasium_adapter import HostEnv, HostStep, fitted, flatten_batch
from lrl_jax.envs.vector_infos import merged, success_in
from lrl_jax.envs.vector_processes import ANEW, EnvError, raised


class _Seat:
    """An environment that is made, reset, stepped and closed in one thread, its own.

    Renderers, databases and the like may be used in the thread alone that they were made in.

    Args:
        index: of the instance.
        env_fn: makes it.
        dtype: of the observations.
        processes: whether it runs in a separate process, which is restarted if it is lost.
    """

    def __init__(self, index: int, env_fn: Callable[[], Any], dtype: Any, processes: bool):
        self._index, self._dtype = index, dtype
        self._make: Callable[..., VectorEnv] = SyncVectorEnv
        self._fn = env_fn
        if processes:  # not forked: JAX has threads
            self._make = functools.partial(AsyncVectorEnv, context="forkserver")
            self._fn = _deaf_to_interrupts(env_fn)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"environment-{index}")
        self._env: HostEnv | None = None
        self._reset_kwargs: dict[str, Any] = {}
        #: Seconds for which a frame is shown after each step; None for no display.
        self.shown_for: float | None = None

    def begin(self, name: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Call a method of the environment, a HostEnv, without waiting for it."""
        return self._thread.submit(self._call, name, *args, **kwargs)

    def vector(self) -> VectorEnv:
        """The vector environment of one instance; made if there is none."""
        return self._thread.submit(self._made).result().vector

    def _made(self) -> HostEnv:
        if self._env is None:
            vector = self._make([self._fn], autoreset_mode=AutoresetMode.DISABLED)
            self._env = HostEnv(vector, self._dtype, is_single=isinstance(vector, SyncVectorEnv))
            self._env.reset_kwargs = self._reset_kwargs
        return self._env

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            env = self._made()
            env.before_reset = None if self.shown_for is None else self._show
            out = getattr(env, name)(*args, **kwargs)
            if name == "step" and not (out.terminated | out.truncated)[0]:
                self._show()
            return out
        except EnvError as error:  # the first of one
            self._env = None if error.died else self._env
            what = error.what.removesuffix(ANEW) + AGAIN
            raise EnvError(self._index, what) from error.__cause__
        except BaseException as error:
            raise EnvError(self._index, raised(error)) from error

    def _show(self) -> None:
        if self._env is not None and self.shown_for is not None:
            self._env.vector.render()
            time.sleep(self.shown_for)

    def set_reset_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Arguments of resets on the way, also of one that a pending step may bring."""
        if self._env is not None:
            self._env.reset_kwargs = kwargs
        self._reset_kwargs = kwargs

    def close(self) -> None:
        """Close the environment and end the thread."""
        try:
            if self._env is not None:
                self._thread.submit(self._env.vector.close).result()
        finally:
            self._thread.shutdown()


class Futures:
    """A list of environment functions, with one thread per environment.

    Args:
        env_fns: functions without arguments that make one Gymnasium environment each.
        dtype: of the observations.
        processes: whether each environment runs in a separate process, for environments that
            are busy in Python rather than waiting or computing in C.
        wait_num: steps to wait for; all pending ones if None.
        timeout: seconds after which one step is enough; None for never.
    """

    lockstep, can_pause = False, True

    def __init__(
        self,
        env_fns: Sequence[Callable[[], Any]],
        dtype: Any,
        processes: bool = False,
        wait_num: int | None = None,
        timeout: float | None = None,
    ):
        self._flying: dict[concurrent.futures.Future[Any], int] = {}
        self._resetting: list[concurrent.futures.Future[Any]] = []
        self._seats = [_Seat(i, fn, dtype, processes) for i, fn in enumerate(env_fns)]
        self.n, self.spoiled = len(env_fns), False
        self.stale = np.zeros(self.n, bool)  # who sits out is not stepped
        self._wait_num, self._timeout = wait_num or self.n, timeout
        self._reset_kwargs: dict[str, Any] = {}
        try:
            if self._wait_num > self.n:
                raise ValueError(f"wait_num={wait_num}, but there are {self.n} environments.")
            self._check_alike([seat.vector() for seat in self._seats])
        except BaseException:
            self.close()
            raise

    def _check_alike(self, vectors: list[Any]) -> None:
        """Refuse environments of different spaces."""
        self.spec_env = vectors[0]
        for i, vector in enumerate(vectors):
            for name in ("single_observation_space", "single_action_space"):
                mine, first = getattr(vector, name), getattr(self.spec_env, name)
                if mine != first:
                    raise ValueError(
                        f"environment {i} has {name} {mine}, but the first has {first}: all must "
                        f"be the same."
                    )

    @property
    def busy(self) -> np.ndarray:
        """Instances whose steps have not been received, bool [n]."""
        busy = np.zeros(self.n, bool)
        busy[list(self._flying.values())] = True
        return busy

    @property
    def reset_kwargs(self) -> dict[str, Any]:
        """Of resets on the way."""
        return self._reset_kwargs

    @reset_kwargs.setter
    def reset_kwargs(self, kwargs: dict[str, Any]) -> None:
        self._reset_kwargs = kwargs
        for seat in self._seats:
            seat.set_reset_kwargs(kwargs)

    def reset(self, seed: Any, **kwargs: Any) -> np.ndarray:
        """Wait for what the instances are doing, forget it, reset them; observations [n, ...].

        Args:
            seed: of the first, the others count up; or a list of n; or None.
            **kwargs: further arguments of each environment's reset.
        """
        running = list(self._flying)
        _wait(running)
        self._flying.clear()
        seen, self.spoiled = self.spoiled, True  # until all have been reset
        if not seen:  # an error that was not raised yet is not forgotten
            for future in running:
                future.result()
        obs = self._resets(range(self.n), seed, **kwargs)
        self.spoiled, self.stale[:] = False, False
        return obs

    def reset_some(self, mask: np.ndarray) -> np.ndarray:
        """Reset the idle instances in the mask [n]; observations [n, ...], true there."""
        ids = np.flatnonzero(mask)
        obs = self._resets(ids, None, **self._reset_kwargs)
        out = np.zeros((self.n, *obs.shape[1:]), obs.dtype)
        out[ids] = obs
        self.stale &= ~mask
        return out

    def _resets(self, ids: Any, seed: Any, **kwargs: Any) -> np.ndarray:
        _wait(self._resetting)  # of a call that was interrupted
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.n)]
        else:
            seeds = list(seed)
            if len(seeds) != self.n:
                raise ValueError(f"{len(seeds)} seeds were given for {self.n} environments.")
        self._resetting = resets = [self._seats[i].begin("reset", seeds[i], **kwargs) for i in ids]
        _wait(resets)
        return np.concatenate([future.result() for future in resets])

    def shown_for(self, seconds: float | None) -> None:
        """Show frames of the first environment for so long each; None for none."""
        self._seats[0].shown_for = seconds

    def send(self, action: np.ndarray, mask: np.ndarray | None) -> None:
        """Begin steps of the idle instances in the mask."""
        for i in range(self.n) if mask is None else np.flatnonzero(mask).tolist():
            self._flying[self._seats[i].begin("step", action[i : i + 1])] = i

    def receive(self) -> HostStep:
        """Wait for `wait_num` steps, or for one if `timeout` seconds have passed."""
        with interrupts.let_through():
            waiting = concurrent.futures.as_completed(list(self._flying), self._timeout)
            try:
                for _ in range(min(self._wait_num, len(self._flying))):
                    next(waiting)
            except concurrent.futures.TimeoutError:
                first = concurrent.futures.FIRST_COMPLETED
                concurrent.futures.wait(self._flying, return_when=first)
        done = [future for future in self._flying if future.done()]
        finished = sorted(done, key=self._flying.__getitem__)
        ids = [self._flying.pop(future) for future in finished]
        self.spoiled |= any(future.exception() is not None for future in finished)
        steps = [future.result() for future in finished]

        info = merged([step.info for step in steps])
        seen = [success_in(step.info, 1) for step in steps]
        success, told = (np.concatenate(x) for x in zip(*seen, strict=True))
        if told.any():  # by some, which `merged` leaves out
            info["is_success"], info["_is_success"] = success, told
        columns = {x: np.concatenate([getattr(step, x) for step in steps]) for x in _COLUMNS}
        return _spread(self.n, ids, columns, info)

    def close(self) -> None:
        """Wait for pending steps, close the environments."""
        concurrent.futures.wait(self._flying)
        self._flying.clear()
        with contextlib.ExitStack() as stack:  # all of them, also where one raises
            for seat in self._seats:
                stack.callback(seat.close)


#: What is said instead of `ANEW` where the collector has the functions to do so.
AGAIN = "The next call makes it again."


def _deaf_to_interrupts(env_fn: Callable[[], Any]) -> Callable[[], Any]:
    """A function for a process that Ctrl-C, which reaches all of them, does not end.

    Gymnasium also calls it in its own process, to look at the spaces: that one goes on hearing.
    It is passed by value, as a closure without globals, so that the process needs no JAX.
    """

    def make():
        import multiprocessing
        import signal

        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return env_fn()

    return make


def _wait(futures: list[concurrent.futures.Future[Any]]) -> None:
    """Wait for all of them; an interrupt leaves them running."""
    with interrupts.let_through():
        concurrent.futures.wait(futures)


_COLUMNS = ("obs_next", "obs", "rew", "terminated", "truncated")


def _spread(n: int, ids: Any, columns: dict[str, np.ndarray], info: dict[str, Any]) -> HostStep:
    """A step of the instances `ids`, from arrays with a row for each."""
    out = {}
    for name, values in columns.items():
        out[name] = np.zeros((n, *values.shape[1:]), values.dtype)
        out[name][ids] = values
    ready = np.zeros(n, bool)
    ready[ids] = True
    return HostStep(**out, info=info, ready=ready)


class Envpool:
    """An envpool environment made with `envpool.make_gymnasium(id, num_envs=, batch_size=)`.

    It answers with `batch_size` instances at a time and resets an instance in a separate step,
    which is not passed on: a step that ended an episode is, once the reset has been answered. Where
    fewer instances are wanted than fill a batch, others step unseen; they are `spoiled` then.

    Args:
        env: the environment.
        dtype: of the observations.
    """

    lockstep, can_pause = False, False

    def __init__(self, env: Any, dtype: Any):
        self._env = env
        self.n, self._batch = int(env.config["num_envs"]), int(env.config["batch_size"])
        self._batch = self._batch or self.n
        if self.n % self._batch:
            raise ValueError(
                f"envpool with num_envs={self.n} and batch_size={self._batch}: the number of "
                f"environments must be a multiple of the batch's."
            )
        self.spec_env = _Spaces(env.observation_space, env.action_space)
        self.spoiled, self.stale = False, np.zeros(self.n, bool)
        self._dtype = dtype
        self._idle = np.zeros((self.n, *env.action_space.shape), env.action_space.dtype)
        self._flying = np.zeros(self.n, bool)  # envpool owes an answer
        self._unseen = np.zeros(self.n, bool)  # that answer is not needed
        self._ended: dict[int, dict[str, Any]] = {}  # last steps whose reset is not answered yet
        # Where a batch is all of them, envpool takes their actions in one call only.
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def busy(self) -> np.ndarray:
        """Instances whose steps have not been received, bool [n]."""
        return self._flying & ~self._unseen

    @property
    def reset_kwargs(self) -> dict[str, Any]:
        """None: envpool's resets take no arguments."""
        return {}

    @reset_kwargs.setter
    def reset_kwargs(self, kwargs: dict[str, Any]) -> None:
        if kwargs:
            raise ValueError(f"envpool's resets take no arguments, got {sorted(kwargs)}.")

    def shown_for(self, seconds: float | None) -> None:
        """Refused: envpool draws nothing."""
        if seconds is not None:
            raise ValueError("render: envpool's environments cannot be shown; leave it None.")

    def reset_some(self, mask: np.ndarray) -> np.ndarray:
        """Refused: envpool resets an instance where its episode ends, or all."""
        raise TypeError("envpool resets all of its environments or none.")

    def reset(self, seed: int | None, **kwargs: Any) -> np.ndarray:
        """Wait for what all instances are doing, forget it, reset them; observations [n, ...]."""
        if kwargs:
            raise ValueError(f"envpool's resets take no arguments, got {sorted(kwargs)}.")
        del seed  # given where the environment is made
        if self._flying.any():
            self._fly(np.flatnonzero(~self._flying))
            for _ in range(self.n // self._batch):
                self._recv()
        self._env.async_reset()
        answers = [self._recv() for _ in range(self.n // self._batch)]
        obs, ids = (np.concatenate([answer[k] for answer in answers]) for k in (0, -1))
        self._unseen[:], self.spoiled = False, False
        self._ended.clear()
        return obs[np.argsort(ids)]

    def _recv(self) -> tuple[Any, ...]:
        if self._waiting:
            ids, actions = (np.concatenate(x) for x in zip(*self._waiting, strict=True))
            self._waiting.clear()
            order = np.argsort(ids)
            self._env.send(actions[order], ids[order])
        obs, rew, terminated, truncated, info = self._env.recv()
        ids = np.asarray(info["env_id"])
        self._flying[ids] = False
        obs = flatten_batch(self.spec_env.observation_space, obs, self._dtype)
        return obs, rew, terminated, truncated, info, ids

    def _fly(self, ids: np.ndarray, actions: np.ndarray | None = None) -> None:
        if len(ids):
            actions = self._idle[ids] if actions is None else actions
            actions = fitted(actions, self.spec_env.action_space)
            actions = np.ascontiguousarray(actions, self._idle.dtype)
            self._flying[ids], ids = True, ids.astype(np.int32)
            if self._batch == self.n:
                self._waiting.append((ids, actions))
            else:
                self._env.send(actions, ids)

    def send(self, action: np.ndarray, mask: np.ndarray | None) -> None:
        """Begin steps of the idle instances in the mask."""
        ids = np.arange(self.n) if mask is None else np.flatnonzero(mask)
        self._fly(ids, action[ids])

    def receive(self) -> HostStep:
        """The next steps; `batch_size` says how many to wait for."""
        rows: list[dict[str, Any]] = []
        while not rows:
            lacking = self._batch - int(self._flying.sum())
            if lacking > 0:
                ids = np.flatnonzero(~self._flying)[:lacking]
                self._unseen[ids], self.spoiled = True, True
                self._fly(ids)
            obs, rew, terminated, truncated, info, ids = self._recv()
            again = []
            for j, i in enumerate(ids.tolist()):
                if self._unseen[i]:
                    self._unseen[i] = False
                    continue
                if i in self._ended:
                    rows.append(self._ended.pop(i) | {"obs": obs[j]})
                    continue
                row = {
                    "ids": i,
                    "obs_next": obs[j],
                    "obs": obs[j],
                    "rew": np.float32(rew[j]),
                    "terminated": bool(terminated[j]),
                    "truncated": bool(truncated[j]),
                    "info": {k: v[j : j + 1] for k, v in info.items() if _is_of(v, ids)},
                }
                if row["terminated"] or row["truncated"]:
                    self._ended[i] = row
                    again.append(i)
                else:
                    rows.append(row)
            self._fly(np.array(again, int))  # any action begins the next episode
        rows.sort(key=lambda row: row["ids"])
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        numbers, info = columns.pop("ids"), merged(columns.pop("info"))
        return _spread(self.n, numbers, {k: np.stack(x) for k, x in columns.items()}, info)

    def close(self) -> None:
        """End the environment."""
        self._env.close()


class _Spaces(gymnasium.Env):
    """Only the spaces of one instance."""

    def __init__(self, observation_space: Any, action_space: Any):
        self.observation_space, self.action_space = observation_space, action_space


def _is_of(values: Any, ids: np.ndarray) -> bool:
    return isinstance(values, np.ndarray) and values.shape[:1] == ids.shape


#: Environments on the host, in lockstep (`HostEnv`) or answering when they are ready. Of the
#: instances `busy` are those whose steps have not been received, and `stale` those to be reset
#: before their next use, bool [n] each; where `spoiled`, all need a reset.
Source = HostEnv | Futures | Envpool


def make_source(
    env: Any, dtype: Any, processes: bool, wait_num: int | None, timeout: float | None
) -> Futures | Envpool:
    """The source for the environments that a user gave.

    Raises:
        TypeError: for what cannot step in part.
    """
    if callable(getattr(env, "recv", None)) and callable(getattr(env, "send", None)):
        if not (wait_num is None and timeout is None):
            raise ValueError(
                "wait_num and timeout are for lists of functions: envpool waits for the "
                "batch_size that it was made with."
            )
        return Envpool(env, dtype)
    if isinstance(env, VectorEnv):
        raise TypeError(
            f"{type(env).__name__} steps all of its environments or none: use Collector, or give "
            f"AsyncCollector the list of functions that it was made from."
        )
    if isinstance(env, Sequence) and not isinstance(env, str):
        if not env:
            raise ValueError("the list of environment functions is empty: give at least one.")
        if not all(callable(fn) and not isinstance(fn, gymnasium.Env) for fn in env):
            raise TypeError(
                "AsyncCollector takes functions that make environments, such as "
                "[lambda: gymnasium.make(id)] * 8, not environments."
            )
        return Futures(env, dtype, processes, wait_num, timeout)
    raise TypeError(
        f"AsyncCollector takes a list of functions that make Gymnasium environments, or an envpool "
        f"environment, not {type(env).__name__}."
    )
