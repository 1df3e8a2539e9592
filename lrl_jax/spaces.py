"""Hashable action and observation spaces.

Environments bring spaces of gymnax or Gymnasium; inside the library they are these two
frozen dataclasses, which jitted functions can close over and settings can be compared by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: Boxes of more entries keep one number where a bound is the same for all of them.
LONG = 64


@dataclasses.dataclass(frozen=True)
class Box:
    """Real vectors within bounds.

    Attributes:
        low: lower bound; a number, or one number for each entry (flattened, row major).
        high: upper bound, in the same form.
        shape: shape of one element.
        dtype: name of a floating dtype; observations may also be integers.
    """

    low: Any
    high: Any
    shape: tuple[int, ...] = ()
    dtype: str = "float32"

    def __post_init__(self):
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(int(d) for d in self.shape)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        for name in ("low", "high"):
            bound = np.asarray(getattr(self, name), np.float64)
            if bound.size not in (1, math.prod(shape)):
                raise ValueError(
                    f"Box {name} has shape {bound.shape}, but the space has shape {shape}: "
                    f"give one number or one for each entry."
                )
            flat = np.broadcast_to(bound.reshape(-1), (math.prod(shape),))
            if np.isnan(flat).any():
                raise ValueError(f"Box {name} contains NaN.")
            if flat.size > LONG and (flat == flat[0]).all():
                flat = flat[:1]  # of images: one number is hashed and compared sooner
            object.__setattr__(self, name, tuple(float(x) for x in flat))
        if (np.asarray(self.low) > np.asarray(self.high)).any():
            raise ValueError(f"Box has low {self.low} above high {self.high}.")

    @property
    def dim(self) -> int:
        """Number of entries of one element."""
        return math.prod(self.shape)

    @property
    def is_bounded(self) -> bool:
        """Whether every entry has finite bounds; the largest float counts as infinite."""
        return bool((np.asarray(self.high) - np.asarray(self.low) < 1e30).all())

    @property
    def low_array(self) -> np.ndarray:
        """Lower bounds, array of the space's shape."""
        return _bound(self.low, self)

    @property
    def high_array(self) -> np.ndarray:
        """Upper bounds, array of the space's shape."""
        return _bound(self.high, self)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, flat, float64."""
        low, high = (np.broadcast_to(np.asarray(b), (self.dim,)) for b in (self.low, self.high))
        return low, high

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw uniformly from a bounded space; consumes `key`. Returns an array of its shape."""
        if not self.is_bounded:
            raise ValueError(f"cannot sample uniformly from the unbounded space {self}: bound it.")
        return jax.random.uniform(
            key, self.shape, self.dtype, minval=self.low_array, maxval=self.high_array
        )

    def clip(self, x: jax.Array) -> jax.Array:
        """Clip `[..., *shape]` to the bounds."""
        return jnp.clip(x, self.low_array, self.high_array)

    def __repr__(self) -> str:
        def short(bound):
            return f"{bound[0]:g}" if len(set(bound)) == 1 else str(list(bound))

        if not self.dim:
            return f"Box(shape={self.shape})"
        return f"Box({short(self.low)}, {short(self.high)}, shape={self.shape})"


def _bound(bound: tuple[float, ...], space: Box) -> np.ndarray:
    flat = np.broadcast_to(np.asarray(bound, space.dtype), (space.dim,))
    return flat.reshape(space.shape)


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0 to n - 1.

    Attributes:
        n: number of elements.
        dtype: name of an integer dtype.
    """

    n: int
    dtype: str = "int32"

    def __post_init__(self):
        object.__setattr__(self, "n", int(self.n))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if self.n < 1:
            raise ValueError(f"Discrete needs at least one element, got n={self.n}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element: ()."""
        return ()

    @property
    def dim(self) -> int:
        """Width of the one-hot encoding of an element."""
        return self.n

    @property
    def is_bounded(self) -> bool:
        """Always true."""
        return True

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw uniformly; consumes `key`. Returns a scalar."""
        return jax.random.randint(key, (), 0, self.n, self.dtype)

    def clip(self, x: jax.Array) -> jax.Array:
        """Clip to 0 .. n - 1."""
        return jnp.clip(x, 0, self.n - 1)

    def __repr__(self) -> str:
        return f"Discrete({self.n})"


Space = Box | Discrete


@dataclasses.dataclass(frozen=True)
class SameAsAction:
    """Stands for "the level's own action space" where a level declares its input space."""


def from_any(space: Any, integers: bool = False, name: str = "the space") -> Space:
    """Convert a space of gymnax, Gymnasium or this library; refuse others by name.

    Args:
        space: the space.
        integers: whether it is of observations, which may be whole numbers of any range.
        name: how errors call it.

    Raises:
        TypeError: for anything but a Box of numbers or a Discrete that starts at 0.
    """
    if isinstance(space, Box | Discrete):
        return space
    kind = type(space).__name__
    if kind == "Discrete":
        start = int(getattr(space, "start", 0))
        if integers and start:
            return Box(start, start + int(space.n) - 1, (), "int32")
        if start:
            raise TypeError(f"{space} starts at {start}: only Discrete from 0 is supported.")
        return Discrete(int(space.n))
    if integers and kind == "MultiBinary":
        return Box(0, 1, tuple(space.shape), "int8")
    if integers and kind == "MultiDiscrete":
        low = np.asarray(space.start)
        return Box(low, low + np.asarray(space.nvec) - 1, tuple(space.shape), "int32")
    if kind == "Box":
        dtype = np.dtype(space.dtype)
        if not np.issubdtype(dtype, np.floating) and not (integers and dtype.kind in "iub"):
            raise TypeError(f"Box of dtype {dtype} is not supported: use a Box of floats.")
        wide, dtype = dtype, jax.dtypes.canonicalize_dtype(dtype)
        if dtype != wide and dtype.kind in "iu":
            held = np.iinfo(dtype)  # without x64; larger numbers would come out as others
            if np.min(space.low) < held.min or np.max(space.high) > held.max:
                dtype = np.dtype(np.float32)
        shape = tuple(int(d) for d in space.shape)
        low, high = (
            np.broadcast_to(np.asarray(b, np.float64), shape).reshape(-1)
            for b in (space.low, space.high)
        )
        return Box(low, high, shape, dtype.name)
    raise TypeError(
        f"{name} is a {kind}, which is not supported: actions may be Box or Discrete, observations "
        f"Box."
    )


def picked_entries(map_obs: Callable, space: Box) -> np.ndarray | None:
    """Which entry of an observation each one of the mapped observation is.

    Args:
        map_obs: of one instance's observation.
        space: of the environment's observations.

    Returns:
        Indices [size of what the map returns], of flat arrays; None if the map does not only pick
        entries, or that is not known.
    """
    if space.dtype[:5] != "float":
        return None
    source = []
    # A map that picks entries finds them by any marks put on them; the marks have no relation to
    # each other that sums or differences of entries could meet.
    for seed in (0, 1):
        marks = np.random.default_rng(seed).uniform(-1e3, 1e3, space.dim).astype(space.dtype)
        if len(np.unique(marks)) < space.dim:
            return None
        try:
            with jax.ensure_compile_time_eval():  # also while something is being traced
                obs = jnp.asarray(marks.reshape(space.shape), space.dtype)
                out = np.asarray(map_obs(obs), np.float64).reshape(-1)
        except Exception:  # a map may only work on the observations it was made for
            return None
        hits = out[:, None] == marks.astype(np.float64)
        if not hits.any(1).all():
            return None
        source.append(hits.argmax(1))
    return source[0] if np.array_equal(*source) else None


def mapped_space(map_obs: Callable | None, shape: tuple[int, ...], dtype: Any, space: Box) -> Box:
    """Bounds of what a map returns: known where it only picks entries, else infinite.

    Args:
        map_obs: of one instance's observation; None is the identity.
        shape, dtype: of what it returns.
        space: of the environment's observations.
    """
    if map_obs is None:
        return space
    source = picked_entries(map_obs, space)
    if source is None:
        return Box(-math.inf, math.inf, shape, dtype)
    low, high = (bound.reshape(-1)[source] for bound in (space.low_array, space.high_array))
    return Box(low, high, shape, dtype)
