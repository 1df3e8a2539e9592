"""A run in progress: on the device in compiled chunks, or on the host with Gymnasium's."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lrl_jax import devices
from lrl_jax.collectors import Collector, CollectStats, Episodes
from lrl_jax.collectors.rollout import specs
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.training.config import TrainConfig
from lrl_jax.training.train import Trainer

_FINAL_TEST_STREAM = 0xF17A
_MOST_TEST_TICKS = 100_000
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

    def result(self) -> HierarchyState:
        """The state for what follows training."""
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


def _over_agents(f, in_axes=0):
    """`f` for all agents: on each device for its own, where devices share the agents."""
    f = jax.vmap(f, in_axes)
    if devices.AGENTS not in jax.sharding.get_abstract_mesh().shape:
        return f
    own = P(devices.AGENTS)
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,)
    split = tuple(P() if axis is None else own for axis in axes)
    return jax.shard_map(f, in_specs=split, out_specs=own, check_vma=False)


def _init(hierarchy, trainer, many, key):
    del hierarchy

    def init(key):
        return devices.pin(trainer.init(key), specs)

    return (_over_agents(init) if many else init)(key)


def _test(hierarchy, trainer, n, many, state, key):
    del hierarchy

    def test(state, key):
        return trainer.test(state, key, n)

    return (_over_agents(test, (0, 0)) if many else test)(state, key)


def _chunk(hierarchy, trainer, many, carry):
    del hierarchy
    carry, metrics = (_over_agents(trainer.chunk) if many else trainer.chunk)(carry)
    return carry, devices.place(metrics, P())


def _test_metrics(hierarchy, trainer, many, state, i):
    del hierarchy
    test = trainer.test_metrics
    return devices.place((_over_agents(test, (0, None)) if many else test)(state, i), P())


class DeviceSession:
    """Chunks of jitted rounds, one agent or several in one call, on one device or a mesh."""

    def __init__(self, trainer: Trainer):
        config, hierarchy = trainer.config, trainer.hierarchy
        many = config.seeds > 1
        self._trainer, self._mesh = trainer, _mesh(config)
        self._chunk = hierarchy.jitted(_chunk, trainer, many, donate=0)
        self._test = hierarchy.jitted(_test_metrics, trainer, many)
        key = _keys(config.agent_seeds) if many else jax.random.key(config.seed)
        if many or self._mesh is not None:
            with devices.use(self._mesh):
                carry = hierarchy.jitted(_init, trainer, many)(key)
        else:
            carry = trainer.init(key)
        # Leaves may share arrays (constants); what is donated must not.
        self._carry = jax.tree.map(lambda x: x.copy(), carry)

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""
        return self._carry.hierarchy

    def compile(self) -> float:
        """Compile a chunk; returns the seconds."""
        began = time.monotonic()
        with devices.use(self._mesh):
            self._compiled = self._chunk.lower(self._carry).compile()
        return time.monotonic() - began

    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test; returns the metrics."""
        self._carry, metrics = self._compiled(self._carry)
        return jax.block_until_ready(metrics)

    def test(self, i: int) -> dict[str, Any]:
        """The interim test behind chunk i."""
        with devices.use(self._mesh):
            return self._test(self.state, i)

    def result(self) -> HierarchyState:
        """The state for what follows training: on one device, without replay if it was on many."""
        if self._mesh is None:
            return self.state
        return _on_one_device(self._trainer, self.state)


def _mesh(config: TrainConfig) -> Mesh | None:
    """The mesh of a run; None for one device."""
    if config.devices == 1 and jax.process_count() == 1:
        return None
    return devices.make_mesh(
        config.devices, devices.AGENTS if config.seeds_are_split else devices.AXIS
    )


def _on_one_device(trainer: Trainer, state: HierarchyState) -> HierarchyState:
    """Learners and counters of a state on a mesh, each process its own copy, with one instance."""

    def fetch(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(x)))
        return jnp.asarray(multihost_utils.process_allgather(x, tiled=True))

    def build(learners, total):
        levels = [x.replace(learner=y) for x, y in zip(state.levels, learners, strict=True)]
        of_learners = state.replace(levels=tuple(levels))
        fresh = trainer.hierarchy.for_testing(of_learners, jax.random.key(0), 1)
        return fresh.replace(n_total_env_steps=total)

    learners = jax.tree.map(fetch, [level.learner for level in state.levels])
    total = jax.tree.map(fetch, state.n_total_env_steps)
    return (jax.vmap(build) if trainer.config.seeds > 1 else build)(learners, total)


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

    def result(self) -> HierarchyState:
        """The state for what follows training; the environment is closed."""
        self._trainer.env.close()
        return self.state


def _test_on_host(trainer: Trainer, state: HierarchyState, n: int, seed: int) -> CollectStats:
    """Exactly n whole episodes in an environment of their own, in eval mode."""
    env = trainer.make_test_env(min(n, trainer.config.n_env_instances))
    try:
        hierarchy = trainer.hierarchy.eval()
        key = jax.random.fold_in(jax.random.key(seed), _FINAL_TEST_STREAM)
        test_state = hierarchy.for_testing(state, key, env.num_envs)
        collector = Collector(hierarchy, env, state=test_state)
        collector.reset(seed=int(jax.random.randint(key, (), 0, 2**31 - 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said below
            stats = collector.collect(n_episodes=n, max_steps=_MOST_TEST_TICKS)
        if stats.truncated_by_limit:
            raise ValueError(
                f"{stats.truncated_by_limit} of {n} test episodes of {trainer.config.env} had not "
                f"ended after {_MOST_TEST_TICKS} ticks: register it with max_episode_steps."
            )
        return stats
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
