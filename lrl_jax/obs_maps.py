"""Observation maps as settings: what a level sees of one instance's observation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.env_spec import env_spec, goal_indices, runs
from lrl_jax.settings import check_int

__all__ = ["Entries", "GoalParts"]


@dataclasses.dataclass(frozen=True)
class Entries:
    """The entries [start, stop) of a flat observation.

    Attributes:
        start, stop: the range.
    """

    start: int
    stop: int

    def __post_init__(self):
        object.__setattr__(self, "start", check_int("start", self.start, 0))
        object.__setattr__(self, "stop", check_int("stop", self.stop, self.start + 1))

    def __call__(self, obs: jax.Array) -> jax.Array:
        """[O] to [stop - start].

        Raises:
            ValueError: if the observation is not flat or has fewer entries.
        """
        if obs.ndim != 1 or obs.shape[0] < self.stop:
            raise ValueError(f"{self} needs a flat observation, got shape {obs.shape}.")
        return obs[self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class GoalParts:
    """Named parts of a goal-based environment's observation, one after another.

    A `Hierarchy` puts in the entries that its environment has them in.

    Attributes:
        names: of the parts, such as ("achieved_goal",); "state" is everything but the desired
            goal, once.
        entries: [start, stop) of their runs; None until the environment is known.
    """

    names: str | tuple[str, ...]
    entries: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        names = (self.names,) if isinstance(self.names, str) else tuple(self.names)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"names must be names of parts of the observation, got {self.names!r}."
            )
        object.__setattr__(self, "names", names)

    def bind_env(self, env: Any) -> GoalParts:
        """With the entries of an environment.

        Raises:
            ValueError: if it is not goal based, or has no such parts.
        """
        goal_indices(env)  # refuses environments without goals
        parts = dict(env_spec(env).goal_indices.parts)
        missing = [name for name in self.names if name not in parts]
        if missing:
            raise ValueError(f"the observation has no {missing}, only {sorted(parts)}.")
        entries = tuple(run for name in self.names for run in runs(parts[name]))
        return dataclasses.replace(self, entries=entries)

    def __call__(self, obs: jax.Array) -> jax.Array:
        """[O] to [sum of the parts' sizes]."""
        if self.entries is None:
            raise ValueError(f"{self} does not know its environment yet: pass it to a Hierarchy.")
        return jnp.concatenate([obs[start:stop] for start, stop in self.entries])
