"""Gymnasium environments behind one interface, whatever their way of resetting themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lrl_jax import interrupts
from lrl_jax.env_spec import flat_space, is_gymnasium, parts_of  # noqa: F401


def flatten_batch(space: gymnasium.Space, obs: Any, dtype: Any) -> np.ndarray:
    """Observations of n instances as one new array [n, ...].

    Args:
        space: of ONE instance.
        obs: as a vector environment returns them.
        dtype: of the result.
    """
    if not isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return np.array(obs, dtype)  # a copy: vector environments may write over theirs
    columns = [_columns(part, obs[key]) for key, part in parts_of(space)]
    return np.concatenate(columns, axis=1, dtype=dtype, casting="unsafe")


def _columns(space: gymnasium.Space, obs: Any) -> np.ndarray:
    """A part of the observation, [n, entries]."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return np.concatenate([_columns(part, obs[key]) for key, part in parts_of(space)], axis=1)
    if isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.MultiBinary):
        values = np.asarray(obs)
        return values.reshape(len(values), -1)
    rows: list[Any] = [gymnasium.spaces.flatten(space, one) for one in obs]
    return np.stack(rows)


@dataclasses.dataclass
class HostStep:
    """A step of n environments, each array [n, ...].

    Attributes:
        obs_next: next observation, the true final one where an episode ended.
        obs: observation to act on next: after the reset, where an episode ended.
        rew: float32.
        terminated, truncated: bool.
        info: of the vector environment; entries of final steps are in their usual place. Of the
            instances in `ready` only.
        ready: bool [n], whose steps these are; rows of others mean nothing. All if None.
    """

    obs_next: np.ndarray
    obs: np.ndarray
    rew: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]
    ready: np.ndarray | None = None


class HostEnv:
    """A Gymnasium vector environment that has reset itself after every step that ended episodes.

    All three modes of resetting look alike from here: `step` returns the true final observation and
    that after the reset, and no step is a fake one. Single instances are reset with a mask, which
    Gymnasium's `RecordEpisodeStatistics` for vector environments takes for a reset of all: its
    figures are right in mode SAME_STEP only (those of CollectStats always are).

    Args:
        env: Gymnasium environment, single or vector.
        dtype: of the observations.

    Attributes:
        options: of resets after the end of an episode, or None.
        lockstep: all instances step together.
        busy: instances whose steps have not been received; none between ticks.
        stale: instances that were stepped without anybody looking, bool [n]: they need a reset.

    Raises:
        TypeError, ValueError: for vector environments that cannot reset single instances.
    """

    lockstep = True

    def __init__(self, env: Any, dtype: Any = np.float32):
        self.env = env
        self.vector: Any = env
        if not isinstance(env, VectorEnv):
            self.vector = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
        self.n = self.vector.num_envs
        self.busy, self.stale = np.zeros(self.n, bool), np.zeros(self.n, bool)
        self._sent: np.ndarray | None = None
        self._options: dict[str, Any] | None = None
        self.dtype = np.dtype(dtype)
        self.space = self.vector.single_observation_space
        base = self.vector.unwrapped
        # The metadata are shared by all environments of a class: the last one made writes them.
        mode = getattr(base, "autoreset_mode", None)
        mode = self.vector.metadata.get("autoreset_mode") if mode is None else mode
        self.mode = AutoresetMode(AutoresetMode.NEXT_STEP if mode is None else mode)
        self.can_pause = isinstance(base, SyncVectorEnv | AsyncVectorEnv)
        if not self.can_pause and self.mode is not AutoresetMode.SAME_STEP:
            raise TypeError(
                f"{type(base).__name__} resets in mode {self.mode.name} and does not say that it "
                f"can reset single instances: make it with "
                f"gymnasium.make_vec(id, num_envs, vectorization_mode='sync')."
            )
        shared = getattr(base, "shared_memory", True)
        if isinstance(base, AsyncVectorEnv) and not shared and self.mode is AutoresetMode.NEXT_STEP:
            raise ValueError(
                "an AsyncVectorEnv without shared memory cannot reset single instances in mode "
                "NEXT_STEP: use shared_memory=True or autoreset_mode=AutoresetMode.SAME_STEP."
            )
        self._obs: np.ndarray | None = None
        self._splits = isinstance(self.vector, AsyncVectorEnv) and all(
            getattr(type(self.vector), name) is getattr(AsyncVectorEnv, name)
            for name in ("reset", "step")
        )

    def reset(self, seed: Any = None, **kwargs: Any) -> np.ndarray:
        """Reset all instances; returns observations [n, ...].

        Args:
            seed: of the vector environment; an int or a list of n.
            **kwargs: further arguments of its `reset`.
        """
        obs, _ = self._called_reset(seed=seed, **kwargs)
        self._obs = flatten_batch(self.space, obs, self.dtype)
        self.stale[:] = False
        return self._obs

    @property
    def spoiled(self) -> bool:
        """Whether all need a reset, as those that are stale cannot be reset alone."""
        return not self.can_pause and bool(self.stale.any())

    @property
    def options(self) -> dict[str, Any] | None:
        """Of resets on the way."""
        return self._options

    @options.setter
    def options(self, options: dict[str, Any] | None) -> None:
        if options and self.mode is AutoresetMode.SAME_STEP:
            raise ValueError(
                "gym_reset_kwargs: an environment in mode SAME_STEP resets itself, without "
                "options: make it with autoreset_mode=AutoresetMode.DISABLED."
            )
        self._options = options

    def reset_some(self, mask: np.ndarray) -> np.ndarray:
        """Reset the instances in `mask` [n]; returns observations of all [n, ...].

        Raises:
            TypeError: where the vector environment cannot do so.
        """
        obs = self._reset_some(mask)
        self.stale &= ~mask
        return obs

    def _reset_some(self, mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            assert self._obs is not None
            return self._obs
        if not self.can_pause:
            raise TypeError(
                f"{type(self.vector.unwrapped).__name__} cannot reset single instances: collect "
                f"n_steps, or make it with vectorization_mode='sync'."
            )
        obs, _ = self._called_reset(options={**(self.options or {}), "reset_mask": mask.copy()})
        fresh = flatten_batch(self.space, obs, self.dtype)
        assert self._obs is not None
        # Others keep what they had: some environments return nothing new for them.
        self._obs = np.where(mask.reshape(-1, *[1] * (fresh.ndim - 1)), fresh, self._obs)
        return self._obs

    def send(self, action: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Begin a step with actions [n, ...]; ends with `receive`. Nobody looks outside `mask`."""
        self._sent = mask
        if mask is not None:
            self.stale |= ~mask
        if self._splits:
            self.vector.step_async(action)
        else:
            with self._interruptible():
                self._answer = self.vector.step(action)

    def receive(self) -> HostStep:
        """The step that was begun."""
        if self._splits:
            self._wait_for_answers()
            self._answer = self.vector.step_wait()
        answer = self._answer
        raw, rew, terminated, truncated, info = answer
        obs_next = flatten_batch(self.space, raw, self.dtype)
        done = terminated | truncated
        self._obs = obs_next
        obs = obs_next
        if done.any():
            if self.mode is AutoresetMode.SAME_STEP:
                obs_next = obs_next.copy()
                for i in np.flatnonzero(done):
                    final = _first(self.space, info["final_obs"][i])
                    obs_next[i] = flatten_batch(self.space, final, self.dtype)[0]
                info = _with_final(info, done)
            else:
                obs = self._reset_some(done)
        if self._sent is not None:
            info = rows_of(info, self._sent)
        rew = rew.astype(np.float32)
        return HostStep(obs_next, obs, rew, terminated.copy(), truncated.copy(), info, self._sent)

    def _called_reset(self, **kwargs: Any) -> Any:
        """The vector environment's reset; what was begun before an interrupt is heard out first."""
        if not self._splits:
            with self._interruptible():
                return self.vector.reset(**kwargs)
        try:
            self.vector.reset_async(**kwargs)
        except AlreadyPendingCallError as error:
            self._wait_for_answers()
            getattr(self.vector, f"{error.name}_wait")()
            self.vector.reset_async(**kwargs)
        self._wait_for_answers()
        return self.vector.reset_wait()

    def _wait_for_answers(self) -> None:
        """Wait until an AsyncVectorEnv can read all answers: an interrupt here loses none."""
        waiting = {pipe for pipe in self.vector.parent_pipes if pipe is not None}
        with interrupts.let_through():
            while waiting:
                waiting.difference_update(multiprocessing.connection.wait(waiting))

    def _interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Environments in this process can be interrupted anywhere, but not half a conversation."""
        if isinstance(self.vector.unwrapped, AsyncVectorEnv):
            return contextlib.nullcontext()
        return interrupts.let_through()

    def close(self) -> None:
        """The environment is its owner's."""

    def step(self, action: np.ndarray) -> HostStep:
        """A whole step."""
        self.send(action)
        return self.receive()


def _first(space: gymnasium.Space, obs: Any) -> Any:
    """One instance's observation as that of a vector of one."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        parts = {key: _first(part, obs[key]) for key, part in parts_of(space)}
        return parts if isinstance(space, gymnasium.spaces.Dict) else list(parts.values())
    return np.asarray(obs)[None]


def _with_final(info: dict[str, Any], done: np.ndarray) -> dict[str, Any]:
    """What SAME_STEP keeps under `final_info`, at its usual place for the steps that ended."""
    final = info.get("final_info")
    if not isinstance(final, dict):
        return info
    merged = dict(info)
    for name, values in final.items():
        if not isinstance(values, np.ndarray):
            continue
        old = info.get(name)
        if isinstance(old, np.ndarray) and old.shape == values.shape:
            mask = done.reshape(-1, *[1] * (values.ndim - 1))
            merged[name] = np.where(mask, values, old)
        elif old is None:
            merged[name] = values
    return merged


def rows_of(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """A vector environment's info of the instances in `mask` [n] alone."""
    if mask.all():
        return info

    def rows(values):
        if isinstance(values, dict):
            return rows_of(values, mask)
        is_rows = isinstance(values, np.ndarray) and values.shape[:1] == mask.shape
        return values[mask] if is_rows else values

    return {name: rows(values) for name, values in info.items()}


def merged(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Infos of vector environments of one instance each as that of one with all of them.

    Entries that some lack are left out of it, but for their mask, as vector environments have it.
    """
    shared = set.intersection(*map(set, infos)) if infos else set()
    return {
        name: np.concatenate([np.asarray(info[name]) for info in infos])
        for name in sorted(shared)
        if all(isinstance(info[name], np.ndarray) for info in infos)
    }


def success_in(info: dict[str, Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Success in a vector environment's info, and whether anything tells it, new bools [n].

    It is `is_success` or `success`, one flag an instance; text, dicts and several flags tell none.
    """
    success, told = np.zeros(n, bool), np.zeros(n, bool)
    for name in ("is_success", "success"):
        values, said = info.get(name), info.get(f"_{name}", np.ones(n, bool))
        if not isinstance(values, np.ndarray | list) or len(values) != n or len(said) != n:
            continue
        for i in np.flatnonzero(said):
            flag = np.asarray(values[i])
            if flag.size == 1 and flag.dtype.kind in "biuf":
                success[i], told[i] = bool(flag.item()), True
        if told.any():
            break
    return success, told
