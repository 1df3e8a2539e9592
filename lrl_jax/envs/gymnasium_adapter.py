"""One interface to Gymnasium environments, in any autoreset mode."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from lrl_jax import interrupts
from lrl_jax.env_spec import flat_space, is_gymnasium, parts_of  # noqa: F401
from lrl_jax.envs.vector_infos import rows_of, tolerate_differing, with_final
from lrl_jax.envs.vector_processes import Processes
from lrl_jax.envs.vector_resets import (
    Masked,
    keeping,
    refuse_wrappers,
    resetting,
    warn_of_own_statistics,
)


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


def fitted(action: np.ndarray, space: gymnasium.Space) -> np.ndarray:
    """Actions [n, ...] in the type of an environment's space, and inside its bounds.

    A bound of float64, rounded to the hierarchy's float32, may be outside.

    Args:
        action: as the hierarchy decides.
        space: of ONE instance's actions.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        return action
    return np.clip(action.astype(space.dtype, copy=False), space.low, space.high)


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

    All three autoreset modes look the same from here: `step` returns the true final observation and
    the one after the reset, and every step is a real one.

    Args:
        env: Gymnasium environment, single or vector.
        dtype: of the observations.
        is_single: whether a vector environment is of a single one, whose resets may take more.

    Attributes:
        reset_kwargs: of resets on the way: `options`, and of a single environment also others.
        before_reset: called when an episode of the first instance has ended, before it is reset.
        lockstep: all instances step together.
        busy: instances whose steps have not been received; none between ticks.
        stale: instances that were stepped without anybody looking, bool [n]: they need a reset.

    Raises:
        TypeError, ValueError: for vector environments that cannot reset single instances.
    """

    lockstep = True
    before_reset: Callable[[], None] | None = None

    def __init__(self, env: Any, dtype: Any = np.float32, is_single: bool = False):
        self.env = env
        self.vector: Any = env
        self._is_single = is_single or not isinstance(env, VectorEnv)
        if not isinstance(env, VectorEnv):
            self.vector = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
        self.n = self.vector.num_envs
        self.busy, self.stale = np.zeros(self.n, bool), np.zeros(self.n, bool)
        self._sent: np.ndarray | None = None
        self._reset_kwargs: dict[str, Any] = {}
        self.dtype = np.dtype(dtype)
        self.space = self.vector.single_observation_space
        self._base = base = self.vector.unwrapped
        # The metadata are shared by all environments of a class: the last one made writes them.
        mode = getattr(base, "autoreset_mode", None)
        mode = self.vector.metadata.get("autoreset_mode") if mode is None else mode
        self.mode = AutoresetMode(AutoresetMode.NEXT_STEP if mode is None else mode)
        refuse_wrappers(self.vector, self.mode)
        warn_of_own_statistics(base)
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
        self._processes = Processes(base) if isinstance(base, AsyncVectorEnv) else None
        if self.can_pause:
            tolerate_differing(base)
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
        kwargs, keywords = self._split_off(kwargs)
        with resetting(self._base, keywords):
            obs, _ = self._called_reset(seed=seed, **kwargs)
        self._obs = flatten_batch(self.space, obs, self.dtype)
        self.stale[:] = False
        return self._obs

    def _split_off(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the vector environment's reset, and of a single environment's alone."""
        if not self._is_single:
            return kwargs, {}
        return {k: v for k, v in kwargs.items() if k == "options"}, {
            k: v for k, v in kwargs.items() if k != "options"
        }

    @property
    def hides_last_frame(self) -> bool:
        """Whether the first instance resets itself where nothing is called before."""
        return self.mode is AutoresetMode.SAME_STEP and not isinstance(self._base, SyncVectorEnv)

    @property
    def spoiled(self) -> bool:
        """Whether all need a reset, as those that are stale cannot be reset alone."""
        return not self.can_pause and bool(self.stale.any())

    @property
    def reset_kwargs(self) -> dict[str, Any]:
        """Of resets on the way."""
        return self._reset_kwargs

    @reset_kwargs.setter
    def reset_kwargs(self, kwargs: dict[str, Any]) -> None:
        if kwargs and self.mode is AutoresetMode.SAME_STEP:
            raise ValueError(
                "gym_reset_kwargs: an environment in mode SAME_STEP resets itself, without "
                "options: make it with autoreset_mode=AutoresetMode.DISABLED."
            )
        rest = sorted(set(kwargs) - {"options"})
        if rest and not self._is_single:
            raise ValueError(
                f"gym_reset_kwargs has {rest}, but single instances are reset with options only: "
                f"pass the rest to reset."
            )
        self._reset_kwargs = kwargs

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
        kwargs, keywords = self._split_off(self._reset_kwargs)
        options = Masked(**(kwargs.get("options") or {}), reset_mask=mask.copy())
        with resetting(self._base, keywords), keeping(self.vector, mask):
            obs, _ = self._called_reset(options=options)
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
        action = fitted(action, self.vector.single_action_space)
        with self._watched():
            if self._splits:
                self.vector.step_async(action)
            else:
                with self._interruptible(), self._resets_in_step():
                    self._answer = self.vector.step(action)

    def _resets_in_step(self) -> contextlib.AbstractContextManager[None]:
        """A step in which environments may reset themselves."""
        if self.mode is not AutoresetMode.SAME_STEP or self.before_reset is None:
            return contextlib.nullcontext()
        return resetting(self._base, {}, self.before_reset)

    def receive(self) -> HostStep:
        """The step that was begun."""
        if self._splits and self._processes is not None:
            with self._watched():
                self._processes.wait()
                self._answer = self.vector.step_wait()
        raw, rew, terminated, truncated, info = self._answer
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
                info = with_final(info, done)
            else:
                if done[0] and self.before_reset is not None:
                    self.before_reset()
                obs = self._reset_some(done)
        if self._sent is not None:
            info = rows_of(info, self._sent)
        rew = rew.astype(np.float32)
        return HostStep(obs_next, obs, rew, terminated.copy(), truncated.copy(), info, self._sent)

    def _called_reset(self, **kwargs: Any) -> Any:
        """The vector environment's reset; what was begun before an interrupt is heard out first."""
        with self._watched():
            if not self._splits or self._processes is None:
                with self._interruptible():
                    return self.vector.reset(**kwargs)
            try:
                self.vector.reset_async(**kwargs)
            except AlreadyPendingCallError as error:
                self._processes.wait()
                getattr(self.vector, f"{error.name}_wait")()
                self.vector.reset_async(**kwargs)
            self._processes.wait()
            return self.vector.reset_wait()

    def _watched(self) -> contextlib.AbstractContextManager[None]:
        """A block in which processes, if there are some, may be lost."""
        return contextlib.nullcontext() if self._processes is None else self._processes.watched()

    def _interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Environments in this process can be interrupted anywhere, but not half a conversation."""
        if self._processes is not None:
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
