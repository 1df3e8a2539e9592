"""Resets of some of a vector environment's instances, with what their wrappers keep of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, NormalizeObservation, NormalizeReward


class Masked(dict):
    """Options of a reset with a `reset_mask` that wrappers still see after it was taken out.

    In an instance's own process they are the other options alone, None without.
    """

    def pop(self, name: str, *default: Any) -> Any:
        """The mask stays: wrappers ask for it after the environment below them has taken it."""
        return self[name] if name == "reset_mask" else super().pop(name, *default)

    def __reduce__(self) -> Any:
        own = own_options(self)
        return (type(None), ()) if own is None else (dict, (own,))


def own_options(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """What an instance is to see of a reset's options; None if there are none."""
    return {k: v for k, v in (options or {}).items() if k != "reset_mask"} or None


class _Reset:
    """An environment whose resets get their own keywords, and call `before` first."""

    def __init__(self, env: Any, keywords: dict[str, Any], before: Callable[[], None] | None):
        self._env, self._keywords, self._before = env, keywords, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self._before is not None:
            self._before()
        return self._env.reset(seed=seed, options=own_options(options), **self._keywords)


@contextlib.contextmanager
def resetting(
    base: Any, keywords: dict[str, Any], before: Callable[[], None] | None = None
) -> Iterator[None]:
    """A block in which each instance of a SyncVectorEnv is reset with its own keywords.

    Args:
        base: a vector environment without wrappers; any but a SyncVectorEnv is left alone.
        keywords: of each instance's `reset`, in addition to seed and options.
        before: called before the first instance is reset.
    """
    if not isinstance(base, SyncVectorEnv):
        yield
        return
    envs: Any = base.envs
    proxies: Any = [_Reset(env, keywords, None if i else before) for i, env in enumerate(envs)]
    base.envs = proxies
    try:
        yield
    finally:
        base.envs = envs


def wrappers(vector: Any) -> list[Any]:
    """Wrappers around a vector environment, from the outermost in."""
    found = []
    while isinstance(vector, VectorWrapper):
        found.append(vector)
        vector = vector.env
    return found


@contextlib.contextmanager
def keeping(vector: Any, mask: np.ndarray) -> Iterator[None]:
    """A reset of the instances in `mask` [n] that clears nothing of the others.

    Gymnasium's NormalizeReward would clear what it has summed of all instances.
    """
    kept = [
        (wrapper, name, getattr(wrapper, name).copy())
        for wrapper in wrappers(vector)
        if isinstance(wrapper, NormalizeReward)
        for name in ("accumulated_reward", "_prev_dones")
    ]
    yield
    for wrapper, name, old in kept:
        getattr(wrapper, name)[~mask] = old[~mask]


def refuse_wrappers(vector: Any, mode: AutoresetMode) -> None:
    """Refuse wrappers of vector environments that would be wrong without a word.

    Raises:
        TypeError: by name, with the way out.
    """
    for wrapper in wrappers(vector):
        name = type(wrapper).__name__
        if isinstance(wrapper, NormalizeReward) and mode is AutoresetMode.SAME_STEP:
            raise TypeError(
                f"{name} leaves out the first step of each episode in mode SAME_STEP: make the "
                f"vector environment with autoreset_mode=AutoresetMode.NEXT_STEP."
            )
        if isinstance(wrapper, NormalizeObservation):
            raise TypeError(
                f"{name} normalises over all instances of a vector environment and cannot reset "
                f"single ones: leave it out, and use running_normaliser=True of the levels."
            )
        if isinstance(wrapper, DictInfoToList):
            raise TypeError(
                f"{name} turns infos into lists, in which signals and success are not found: "
                f"leave it out."
            )


def warn_of_own_statistics(base: Any) -> None:
    """Name wrappers of single instances that normalise by what that instance alone has seen.

    Args:
        base: a vector environment without wrappers. Instances in other processes are not seen.
    """
    normalising = gymnasium.wrappers.NormalizeObservation | gymnasium.wrappers.NormalizeReward
    found = set()
    for env in getattr(base, "envs", ()):
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, normalising):
                found.add(type(env).__name__)
            env = env.env
    if found:
        warnings.warn(
            f"{' and '.join(sorted(found))} of a single environment normalises by what that one "
            f"has seen: other instances and test environments saw other things, and nothing "
            f"saves it. Leave it out, and use running_normaliser=True and reward_scaling=True "
            f"of the levels.",
            stacklevel=2,
        )
