"""Common parts of learning algorithms: their batch, and how inputs become features."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.models.running_statistics import WIDE
from lrl_jax.spaces import Box, Discrete, Space


class Batch(struct.Node):
    """Rows that an algorithm learns from, as features.

    Leading axes are [B] for algorithms that learn from single rows, and [T, B], time major, for
    those that learn from pieces of trajectories, where row t + 1 follows row t.

    Attributes:
        obs: features of the observation, float32 [..., X].
        condition: features of the level input and of further conditions, float32 [..., C].
        act: actions as stored, in units of the action space, [..., *A].
        rew: float32 [...].
        obs_next, condition_next: of the true next observation, [..., X] and [..., C].
        terminated: bool [...].
        elapsed_env_steps: environment steps that each row took, int32 [...].
        mask: bool [...], rows that count; those after the end of a piece do not.
    """

    obs: jax.Array
    condition: jax.Array
    act: jax.Array
    rew: jax.Array
    obs_next: jax.Array
    condition_next: jax.Array
    terminated: jax.Array
    elapsed_env_steps: jax.Array
    mask: jax.Array

    def discount(self, gamma: jax.Array, smdp: bool) -> jax.Array:
        """What the value after each row is multiplied by, [...]; 0 where it terminated.

        Args:
            gamma: discount of a decision, or, with `smdp`, of an environment step.
            smdp: whether the environment steps that a row took count, not the row.
        """
        steps = self.elapsed_env_steps.astype(jnp.float32) if smdp else 1.0
        return jnp.where(self.terminated, 0.0, gamma**steps)


@dataclasses.dataclass(frozen=True)
class Features:
    """Turns values of several spaces into one flat vector that networks take.

    Entries of a Box with finite bounds are scaled to [-1, 1], others pass unchanged; elements of
    a Discrete become one-hot vectors.

    Attributes:
        spaces: of the values, in order; none gives vectors of size 0.
    """

    spaces: tuple[Space, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "spaces", tuple(self.spaces))
        for space in self.spaces:
            if not isinstance(space, Box | Discrete):
                raise TypeError(f"features are made of Box and Discrete spaces, got {space!r}.")

    @property
    def dim(self) -> int:
        """Size of the vector."""
        return sum(space.dim for space in self.spaces)

    def __call__(self, *values: jax.Array, batch_shape: Sequence[int] = ()) -> jax.Array:
        """Map values [*batch_shape, *space.shape], one per space, to [*batch_shape, dim]."""
        if len(values) != len(self.spaces):
            raise ValueError(f"expected {len(self.spaces)} values, got {len(values)}.")
        batch = tuple(batch_shape)
        if not values:
            return jnp.zeros((*batch, 0), jnp.float32)
        parts = [
            _scaled(space, value, batch) for space, value in zip(self.spaces, values, strict=True)
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def optimised(optimiser: Any, *args: Any) -> Any:
    """`optimiser.update` of optax, which mixes types of numbers also where JAX is to be strict."""
    with jax.numpy_dtype_promotion("standard"):
        return optimiser.update(*args)


class Scale(struct.Node):
    """Scales vectors by their bounds, as leaves: they go where a learner goes.

    Attributes:
        centre, half: float32 [X]; 0 and 1 where a bound is infinite.
    """

    centre: jax.Array
    half: jax.Array

    @classmethod
    def of(cls, space: Box, normalised: np.ndarray | None = None) -> Scale:
        """Scale finite bounds to [-1, 1]; warns where next to nothing would be left of a change.

        Args:
            space: the bounds.
            normalised: entries that are left unchanged, bool [X]; None for none.
        """
        centre, half = _scale(space)
        if normalised is not None:
            centre, half = np.where(normalised, 0, centre), np.where(normalised, 1, half)
        wide = np.flatnonzero(half > WIDE)
        if len(wide):
            low, high = space.bounds
            i = int(wide[0])
            warnings.warn(
                f"inputs of networks have bounds as wide as [{low[i]:g}, {high[i]:g}] (entries "
                f"{wide[:5].tolist()}{' and more' if len(wide) > 5 else ''}), which are scaled to "
                f"[-1, 1]: networks would see hardly any change. Declare bounds that occur, or "
                f"infinite ones, which are not scaled; running_normaliser=True scales both.",
                stacklevel=2,
            )
        return cls(jnp.asarray(centre), jnp.asarray(half))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale [..., X]."""
        return (x.astype(jnp.float32) - self.centre) / self.half


def _scaled(space: Space, value: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    if isinstance(space, Discrete):
        return jax.nn.one_hot(value, space.n, dtype=jnp.float32)
    centre, half = _scale(space)
    flat = jnp.asarray(value, jnp.float32).reshape(*batch, math.prod(space.shape))
    return (flat - centre) / half


def _scale(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half width of each entry, flat; 0 and 1 where a bound is infinite."""
    low, high = space.bounds
    with np.errstate(over="ignore", invalid="ignore"):
        width = high - low
        bounded = (width < 1e30) & (width > 0)
        centre = np.where(bounded, low + 0.5 * width, 0.0)
    half = np.where(bounded, 0.5 * width, 1.0)
    return centre.astype(np.float32), half.astype(np.float32)


def to_unit(space: Box, action: jax.Array) -> jax.Array:
    """Scale actions [..., *space.shape] of a bounded Box to [-1, 1], clipped, [..., dim]."""
    centre, half = _scale(space)
    flat = action.reshape(*action.shape[: action.ndim - len(space.shape)], space.dim)
    return jnp.clip((flat.astype(jnp.float32) - centre) / half, -1.0, 1.0)


def from_unit(space: Box, unit: jax.Array) -> jax.Array:
    """Scale [..., dim] in [-1, 1] to actions [..., *space.shape] of a bounded Box."""
    centre, half = _scale(space)
    action = jnp.asarray(centre + half * unit)
    return action.reshape(*unit.shape[:-1], *space.shape).astype(space.dtype)


def check_box_actions(name: str, space: Space) -> None:
    """Refuse action spaces that are not a bounded Box.

    Raises:
        TypeError: for another kind of space.
        ValueError: for an unbounded Box.
    """
    if not isinstance(space, Box):
        raise TypeError(f"{name} decides in a bounded Box, got {space}: use DQN for Discrete.")
    if not space.is_bounded:
        raise ValueError(f"{name} needs bounded actions, got {space}: give the Box finite bounds.")


Scheduled = float | Callable[[Any], jax.Array]


def init_settings(
    algorithm: Any, names: Sequence[str], **more: float
) -> dict[str, dict[str, jax.Array]]:
    """Settings of an algorithm, and more, as float32 [] leaves that are read while learning.

    Returns:
        The fields `settings` and `scheduled` of an algorithm's state. Numbers are in `settings`,
        where they can be swept under vmap. Settings that are schedules are in `scheduled`, at
        their value for 0 steps.
    """
    values = {name: getattr(algorithm, name) for name in names} | more
    schedules = {name for name, value in values.items() if callable(value)}
    leaves = {name: _at(value, jnp.zeros((), jnp.float32)) for name, value in values.items()}
    return {
        "settings": {name: leaves[name] for name in values if name not in schedules},
        "scheduled": {name: leaves[name] for name in values if name in schedules},
    }


def observe_schedules(algorithm: Any, state: Any, total: jax.Array) -> Any:
    """The state with its `scheduled` settings at their values after `total` environment steps."""
    if not state.scheduled:
        return state
    new = {name: _at(getattr(algorithm, name), total) for name in state.scheduled}
    return state.replace(scheduled=new)


def present_settings(state: Any) -> dict[str, jax.Array]:
    """What settings of an algorithm's state are now: `settings` goes before `scheduled`.

    A number that is put into `settings` therefore stays, whatever schedule the algorithm has.
    """
    return {**state.scheduled, **state.settings}


def _at(setting: Scheduled, total: jax.Array) -> jax.Array:
    return jnp.array(setting(total) if callable(setting) else setting, jnp.float32)
