"""A run in progress: on the device in compiled chunks, or on the host with Gymnasium's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax.collectors import Collector, CollectStats, Episodes
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.training.train import Trainer

_FINAL_TEST_STREAM = 0xF17A
_INTERIM_SEED = 2**30  # of tests on the host, apart from the final test's


class Session(Protocol):
    """What the host loop of a run needs."""

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""
        ...

    def compile(self) -> float:
        """Compile what a chunk needs, where that can be told apart; returns the seconds."""
        ...

    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test, to its end; returns the metrics."""
        ...

    def test(self, i: int) -> dict[str, Any]:
        """The interim test behind chunk i."""
        ...


def begin(trainer: Trainer) -> Session:
    """Start the run of a trainer."""
    return HostSession(trainer) if trainer.on_host else DeviceSession(trainer)


def test_episodes(
    trainer: Trainer, state: HierarchyState, n: int, seed: int | Sequence[int]
) -> Episodes:
    """Whole episodes in eval mode, on the host; see `evaluate`.

    Args:
        trainer: of the run.
        state: of one agent; of several where `seed` is a sequence.
        n: episodes of each agent.
        seed: of the test; one for each agent where `state` is of several.

    Returns:
        Episodes, leaves [n], or [agents, n].
    """
    many = not isinstance(seed, int)
    if trainer.on_host:
        assert isinstance(seed, int)
        return _episodes(_test_on_host(trainer, state, n, seed))
    keys = jax.vmap(_test_key)(_keys(seed)) if many else _test_key(jax.random.key(seed))
    test = trainer.hierarchy.jitted(_test, trainer, n, many)
    return jax.device_get(test(state, keys))


def _keys(seeds: Sequence[int]) -> jax.Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def _test_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, _FINAL_TEST_STREAM)


# Functions for `hierarchy.jitted`; `many` maps them over agents.


def _init(hierarchy, trainer, keys):
    del hierarchy
    return jax.vmap(trainer.init)(keys)


def _test(hierarchy, trainer, n, many, state, key):
    del hierarchy

    def test(state, key):
        return trainer.test(state, key, n)

    return (jax.vmap(test) if many else test)(state, key)


def _chunk(hierarchy, trainer, many, carry):
    del hierarchy
    return (jax.vmap(trainer.chunk) if many else trainer.chunk)(carry)


def _test_metrics(hierarchy, trainer, many, state, i):
    del hierarchy
    test = trainer.test_metrics
    return (jax.vmap(test, in_axes=(0, None)) if many else test)(state, i)


class DeviceSession:
    """Chunks of jitted rounds, one agent or several in one call."""

    def __init__(self, trainer: Trainer):
        config, hierarchy = trainer.config, trainer.hierarchy
        many = config.seeds > 1
        self._chunk = hierarchy.jitted(_chunk, trainer, many, donate=0)
        self._test = hierarchy.jitted(_test_metrics, trainer, many)
        if many:
            carry = hierarchy.jitted(_init, trainer)(_keys(config.agent_seeds))
        else:
            carry = trainer.init(jax.random.key(config.seed))
        # Leaves may share arrays (constants); what is donated must not.
        self._carry = jax.tree.map(lambda x: x.copy(), carry)

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""
        return self._carry.hierarchy

    def compile(self) -> float:
        """Compile a chunk; returns the seconds."""
        began = time.monotonic()
        self._compiled = self._chunk.lower(self._carry).compile()
        return time.monotonic() - began

    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test; returns the metrics."""
        self._carry, metrics = self._compiled(self._carry)
        return jax.block_until_ready(metrics)

    def test(self, i: int) -> dict[str, Any]:
        """The interim test behind chunk i."""
        return self._test(self.state, i)


class HostSession:
    """A Collector that learns after each tick in a Gymnasium vector environment."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._collector = Collector(trainer.hierarchy, trainer.env)
        self._collector.reset(seed=trainer.config.seed)

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state."""
        return self._collector.state

    def compile(self) -> float:
        """Nothing is compiled ahead: the first chunk pays for it."""
        return 0.0

    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test; returns the metrics."""
        config = self._trainer.config
        stats = self._collector.collect(
            n_steps=config.rounds_per_chunk * config.round_ticks, learn=True
        )
        return {
            "n_episodes": stats.n_collected_episodes,
            "return_sum": float(stats.returns.sum()),
            "success_sum": int(stats.successes.sum()),
            "reward_mean": stats.mean_reward,
            **stats.learning,
        }

    def test(self, i: int) -> dict[str, Any]:
        """The interim test behind chunk i."""
        trainer = self._trainer
        seed = _INTERIM_SEED + i
        stats = _test_on_host(trainer, self.state, trainer.config.test_episodes, seed)
        episodes = _episodes(stats)
        metrics = {
            "test_return": episodes.episode_return.mean(),
            "test_return_std": episodes.episode_return.std(),
        }
        if trainer.has_success:
            metrics["test_success"] = episodes.success.mean()
            metrics["test_success_at_end"] = episodes.success_at_end.mean()
        return metrics


def _test_on_host(trainer: Trainer, state: HierarchyState, n: int, seed: int) -> CollectStats:
    """Exactly n whole episodes in an environment of their own, in eval mode."""
    env = trainer.make_test_env(min(n, trainer.config.n_env_instances))
    try:
        hierarchy = trainer.hierarchy.eval()
        key = jax.random.fold_in(jax.random.key(seed), _FINAL_TEST_STREAM)
        test_state = hierarchy.for_testing(state, key, env.num_envs)
        collector = Collector(hierarchy, env, state=test_state)
        collector.reset(seed=int(jax.random.randint(key, (), 0, 2**31 - 1)))
        return collector.collect(n_episodes=n)
    finally:
        env.close()


def _episodes(stats: CollectStats) -> Episodes:
    ones: Any = np.ones(len(stats.lens), bool)
    return Episodes(
        episode_return=stats.returns,
        length=stats.lens,
        success=stats.successes,
        success_at_end=stats.successes_at_end,
        finished=ones,
    )
