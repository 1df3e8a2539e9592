"""Read and run a policy that `lrl_jax.export_policy` wrote.

This file needs jax, numpy and flatbuffers (in which JAX stores exported functions), not lrl_jax. A
copy of it is in every exported policy, so that one file is enough to act:

    import sys

    sys.path.insert(0, "policy.zip")
    from policy_loader import load_policy

    policy = load_policy("policy.zip")
    memory = policy.init(batch_size=1)
    memory, action = policy(memory, obs)  # obs [1, ...], the first of an episode
    memory, action = policy(memory, obs, rew)  # rew [1], the reward of the last step
    memory, action = policy(memory, obs, rew, first)  # first [1], true where an episode begins
"""

from __future__ import annotations

import json
import zipfile
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

FORMAT = 1


class Policy:
    """A policy as one pure function of (memory, observation), for `batch_size` instances.

    What instances remember within an episode, and the random stream of the decisions, is `memory`:
    a tuple of arrays to hand back at the next call. Calls can be jitted and scanned over; they
    donate nothing.

    Attributes:
        about: what the policy is of: `obs_shape` and `obs_dtype` of one instance, `action_space`
            (text), `signals`, `levels`, `batch_size` (None for any), `platforms`, and the versions
            of lrl_jax and jax that wrote it.
    """

    def __init__(self, exported: jax.export.Exported, weights: Any, start: Any, about: dict):
        self.about = about
        self._call = jax.jit(exported.call)
        self._weights = [jnp.asarray(x) for x in weights]
        self._start = [np.asarray(x) for x in start]  # random key, tick, and rows [1, ...]

    def init(self, batch_size: int | None = None, key: Any = None) -> tuple[jax.Array, ...]:
        """Memory of instances that are about to begin an episode.

        Args:
            batch_size: number of instances; what was exported, or 1, if None.
            key: typed random key or seed of the decisions, for policies that draw; the stream of
                `hierarchy.get_copy(state)` if None.

        Raises:
            ValueError: for another batch size than the one that the policy was exported for.
        """
        fixed = self.about["batch_size"]
        n = (fixed or 1) if batch_size is None else batch_size
        if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {n!r}.")
        if fixed not in (None, n):
            raise ValueError(
                f"the policy was exported for batch_size={fixed}, got {n}: export it again with "
                f"export_policy(..., batch_size={n})."
            )
        data, tick, *rows = self._start
        if key is not None:
            is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            key = key if is_key else jax.random.key(key, impl=self.about["key_impl"])
            data, tick = jax.random.key_data(key), np.zeros_like(tick)
        many = (np.repeat(x, n, axis=0) for x in rows)
        return tuple(jnp.asarray(x) for x in (data, tick, *many))

    def __call__(
        self,
        memory: tuple[jax.Array, ...],
        obs: Any,
        rew: Any = 0.0,
        first: Any = False,
        signals: dict[str, Any] | None = None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Decide for n instances.

        Args:
            memory: from `init` or the last call; `n` instances.
            obs: observations [n, ...].
            rew: rewards of the last step, [n] or a number; of no account where an episode begins.
            first: whether `obs` is the first of an episode, bools [n] or one for all: memory is
                fresh there. Not needed right after `init`.
            signals: the hierarchy's signals of the last step by name, [n] each.

        Returns:
            Memory for the next call, and actions [n, ...].

        Raises:
            ValueError, TypeError: for arrays of another shape or kind, with what is expected.
        """
        n = memory[-1].shape[0]
        shape, dtype = tuple(self.about["obs_shape"]), jnp.dtype(self.about["obs_dtype"])
        obs = _array("obs", obs, dtype)
        if obs.shape != (n, *shape):
            raise ValueError(f"obs has shape {obs.shape}, expected {(n, *shape)}: {n} instances.")
        signals = {} if signals is None else dict(signals)
        if sorted(signals) != sorted(self.about["signals"]):
            raise ValueError(
                f"signals are {sorted(signals)}, but the policy needs {self.about['signals']}."
            )
        rew = _per_instance("rew", rew, n, jnp.float32)
        first = _per_instance("first", first, n, jnp.bool_)
        signals = {
            k: _per_instance(f"signals[{k!r}]", x, n, jnp.float32) for k, x in signals.items()
        }
        return self._call(self._weights, memory, obs, rew, first, signals)


def load_policy(path: Any) -> Policy:
    """Read a policy that `lrl_jax.export_policy` wrote to `path`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an exported policy, or one of a later format.
    """
    try:
        with zipfile.ZipFile(path) as file:
            about = json.loads(file.read("policy.json"))
            if about["format"] > FORMAT:
                raise ValueError(
                    f"{path} has format {about['format']}, this loader reads {FORMAT}: use the "
                    f"policy_loader.py inside the file."
                )
            exported = jax.export.deserialize(bytearray(file.read("step.jax")))
            weights, start = (
                _read_arrays(file.read(f"{name}.bin"), about[name]) for name in ("weights", "start")
            )
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is not a policy that export_policy wrote: {error}") from error
    return Policy(exported, weights, start, about)


def _read_arrays(data: bytes, specs: list[Any]) -> list[np.ndarray]:
    """Arrays one after another, each of a (shape, dtype)."""
    arrays, at = [], 0
    for shape, name in specs:
        dtype = jnp.dtype(name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays.append(np.frombuffer(data[at : at + size], dtype).reshape(shape))
        at += size
    return arrays


def _array(name: str, value: Any, dtype: Any) -> Any:
    """As an array of that dtype, if it is of that kind."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}: convert it first.")
    return array.astype(dtype)


def _per_instance(name: str, value: Any, n: int, dtype: Any) -> Any:
    """As an array [n]."""
    array = _array(name, value, dtype)
    if array.shape not in ((), (n,)):
        raise ValueError(f"{name} has shape {array.shape}, expected ({n},).")
    return jnp.broadcast_to(array, (n,))
