"""Random streams: a fixed key, a tick and an instance's index give a key without hashing."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp

from lrl_jax import struct


class Salt(enum.IntEnum):
    """Numbers that set random streams apart. All of the library's are here; none may change.

    Draws of saved runs depend on them. Two uses may share a number only where they never meet the
    same key. Members are of three kinds:

    - Salts of a tick, below 256: `Stream.instance_keys(n, salt)` and `Stream.tick_key(salt)`. Of a
      hierarchy's stream: DECIDE, AFTER_TRANSITION, LEARN. Of the collector's: STEP, RANDOM_ACTION,
      RESET_BY_USER, NONFINITE. Of either: RESTART.
    - Words that `jax.random.fold_in` mixes into a key.
    - Seeds, from which whole streams are made.

    Attributes:
        DECIDE: decisions of level i, at DECIDE + i.
        AFTER_TRANSITION: answers of level i to a finished row, at AFTER_TRANSITION + i.
        LEARN: updates of level i, at LEARN + i.
        STEP: steps of the environments, in the collector's stream.
        RANDOM_ACTION: actions of collecting at random.
        RESET_BY_USER: resets of episodes that a preprocessing function ended.
        NONFINITE: resets of environments whose step was not finite.
        RESTART: a reset of the collector that is given no seed; of the hierarchy's stream in a
            collector that goes on with a state of another one.
        NOISE: of disturbed states, in the update of a model.
        SHARED: key of a tick for what all instances share, apart from the first instance's own.
        RANDOM_MODE: random actions of a level, where its algorithm or planner draws from the same
            key; splits of the key do not reach there.
        STAGGER: lengths of first episodes.
        DECISIONS: stream of the hierarchy in a collector that is given a seed.
        COPY: stream of a hierarchy's copy for tests.
        TEST: tests of a collector, mixed in; and interim tests of a run, as their seed.
        WORKER_TEST: tests of a collection worker, by exclusive or with its seed.
        FINAL_TEST: the test at the end of a run, and each test on the host.
        INTERIM_TEST_ON_HOST: seed of interim test i on the host, at INTERIM_TEST_ON_HOST + i.
        PICTURES: recorded paths of a run, added to its seed.
    """

    DECIDE = 0
    AFTER_TRANSITION = 64
    LEARN = 128
    STEP = 0
    RANDOM_ACTION = 0xA0
    RESET_BY_USER = 0xA1
    NONFINITE = 0xA2
    RESTART = 0xFF

    NOISE = 1
    SHARED = 0x5EED
    RANDOM_MODE = 0x5EED
    STAGGER = 0x57A6
    DECISIONS = 0xDEC1
    COPY = 0x636F7079

    TEST = 0x7E57
    WORKER_TEST = 0xE7A1
    FINAL_TEST = 0xF17A
    INTERIM_TEST_ON_HOST = 2**30
    PICTURES = 1


def key_of(seed: int) -> jax.Array:
    """A typed key [] of a non-negative seed, all of whose bits count.

    Below 2**32 it is `jax.random.key(seed)`, which drops higher bits where x64 is not enabled.
    """
    key, rest = jax.random.key(seed & 0xFFFFFFFF), seed >> 32
    while rest:
        key, rest = jax.random.fold_in(key, rest & 0xFFFFFFFF), rest >> 32
    return key


class Stream(struct.Node):
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
            salt: separates uses within one tick, below 256: it takes the top 8 bits of the word
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
        return jax.random.fold_in(self.instance_keys(1, salt)[0], Salt.SHARED)
