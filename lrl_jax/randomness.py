"""Random streams: a fixed key, a tick and an instance's index give a key without hashing."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from flax import struct


class Salt(enum.IntEnum):
    """What a key of a tick is for. Those of instances stay below 256, with room for each level."""

    DECIDE = 0
    AFTER_TRANSITION = 64
    LEARN = 128
    RANDOM_ACTION = 0x5EED
    COPY = 0x636F7079


@struct.dataclass
class Stream:
    """Random keys for the ticks of n instances.

    Tick and index enter as parts of the key itself: threefry mixes keys as thoroughly as counters
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so no hash is spent before
    the first draw. The key of an instance depends on the seed, the tick and its index, not on n.

    Attributes:
        key: typed key [].
        tick: uint32 [].
    """

    key: jax.Array
    tick: jax.Array

    @classmethod
    def create(cls, key: jax.Array) -> Stream:
        """Start a stream; consumes `key`."""
        return cls(key, jnp.zeros((), jnp.uint32))

    def advance(self) -> Stream:
        """The stream at the next tick."""
        return self.replace(tick=self.tick + jnp.uint32(1))

    def instance_keys(self, n: int, salt: int = 0) -> jax.Array:
        """Keys of this tick, typed [n].

        Args:
            n: number of instances.
            salt: tells uses within one tick apart, below 256: it takes the top 8 bits of the word
                that holds the index.
        """
        data = jax.random.key_data(self.key)
        index = jnp.arange(n, dtype=data.dtype) ^ jnp.asarray(salt << 24, data.dtype)
        first = jnp.broadcast_to(data[0] ^ self.tick, (n,))
        rest = [jnp.broadcast_to(word, (n,)) for word in data[1:-1]]
        words = jnp.stack([first, *rest, data[-1] ^ index], axis=1)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(self.key))

    def tick_key(self, salt: int) -> jax.Array:
        """One key of this tick for what instances share, typed []."""
        return jax.random.fold_in(self.instance_keys(1, salt)[0], 0x5EED)
