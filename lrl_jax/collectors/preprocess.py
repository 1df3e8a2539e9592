"""A user's function that sees all data of environments before it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.settings import check_function

STEP = ("obs_next", "rew", "terminated", "truncated", "info", "act")


def reset_arguments(gym_reset_kwargs: Any) -> dict[str, Any]:
    """A copy of what a user gives for the environments' resets."""
    if gym_reset_kwargs is None:
        return {}
    if not isinstance(gym_reset_kwargs, Mapping):
        raise TypeError(f"gym_reset_kwargs must be a dict, got {gym_reset_kwargs!r}.")
    return dict(gym_reset_kwargs)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """`preprocess_fn` of a collector; arrays are NumPy's or JAX's, as they come.

    Attributes:
        fn: gets `obs` and `env_id` at a reset, and `obs_next`, `rew`, `terminated`, `truncated`,
            `done`, `info`, `act` and `env_id` at a step, each with a leading axis of instances,
            as keywords. What it returns under these names replaces them.
    """

    fn: Callable[..., Any]

    def __post_init__(self):
        check_function("preprocess_fn", self.fn)

    def on_reset(self, obs: Any, env_id: Any) -> Any:
        """Observations [n, ...] after a reset of the instances `env_id` [n]."""
        out = self._call(obs=obs, env_id=env_id)
        return _like("obs", out.get("obs", obs), obs)

    def on_step(self, *step: Any, env_id: Any) -> tuple[Any, ...]:
        """A step of the instances `env_id` [n].

        An episode that the environment ended stays ended: it counts as truncated if the function
        says neither.

        Args:
            *step: in the order of `STEP`.
            env_id: whose step it is.

        Returns:
            The same, and whether the function may end episodes that the environment has not ended.
        """
        given = dict(zip(STEP, step, strict=True))
        done = given["terminated"] | given["truncated"]
        out = self._call(**given, done=done, env_id=env_id)
        new = {name: _like(name, out.get(name, old), old) for name, old in given.items()}
        ended = done | _like("done", out.get("done", done), done)
        new["truncated"] = new["truncated"] | (ended & ~new["terminated"])
        return *new.values(), bool({"terminated", "truncated", "done"} & set(out))

    def _call(self, **given: Any) -> Mapping[str, Any]:
        out = self.fn(**given)
        if out is None:
            return {}
        if not isinstance(out, Mapping):
            raise TypeError(
                f"preprocess_fn returned {type(out).__name__}: return a dict of what it changes."
            )
        unknown = sorted(set(out) - set(given) - {"policy"})
        if unknown:
            raise ValueError(
                f"preprocess_fn returned {unknown}, but what it can change here is "
                f"{', '.join(given)}."
            )
        return out


def _like(name: str, new: Any, old: Any) -> Any:
    """The new value in the old one's type; shapes must match, except in the info."""
    if name == "info":
        return new
    xp = jnp if isinstance(old, jax.Array) else np
    array = new if isinstance(new, jax.Array) and xp is jnp else xp.asarray(new)
    if array.shape != old.shape:
        raise ValueError(
            f"preprocess_fn returned {name} of shape {array.shape}, but it was {old.shape}: the "
            f"hierarchy was built for that."
        )
    return array.astype(old.dtype)
