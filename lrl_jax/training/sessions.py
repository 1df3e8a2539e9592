"""A run in progress: in compiled chunks on devices, on the host, or with collection workers."""

from __future__ import annotations

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lrl_jax import devices, envs
from lrl_jax.collectors import CollectionSettings, Collector, CWorkerSet, Episodes, weights_of
from lrl_jax.collectors.evaluation import whole_episodes
from lrl_jax.collectors.stats import check_finite, mean_over_updates
from lrl_jax.collectors.tick import specs
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.randomness import Salt, key_of
from lrl_jax.training.config import TrainConfig
from lrl_jax.training.train import Trainer

_MOST_TEST_TICKS = 100_000


class Session(abc.ABC):
    """What the host loop of a run needs."""

    _mesh: Mesh | None = None

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    @property
    @abc.abstractmethod
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""

    def compile(self) -> float:
        """Compile what a chunk needs, where that can be told apart; returns the seconds."""
        return 0.0

    @abc.abstractmethod
    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test, to its end; returns the metrics.

        Raises:
            FloatingPointError: where a reward, an observation or a loss is not finite.
        """

    def test(self, i: int) -> dict[str, Any]:
        """The interim test behind chunk i."""
        trainer, config = self._trainer, self._trainer.config
        if trainer.on_host:
            seed = Salt.INTERIM_TEST_ON_HOST + i
            return trainer.means_of(_test_on_host(trainer, self.state, config.test_episodes, seed))
        test = trainer.hierarchy.jitted(_test_metrics, trainer, config.seeds > 1)
        with devices.use(self._mesh):
            return test(self.state, i)

    def result(self) -> HierarchyState:
        """The state for what follows training."""
        return self.state

    def close(self) -> None:
        """End what was started."""
        if self._trainer.on_host:
            self._trainer.env.close()


def begin(trainer: Trainer) -> Session:
    """Start the run of a trainer."""
    if trainer.config.workers:
        return WorkerSession(trainer)
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
        return _test_on_host(trainer, state, n, seed)
    keys = jax.vmap(_test_key)(_keys(seed)) if many else _test_key(key_of(seed))
    test = trainer.hierarchy.jitted(_test, trainer, n, many)
    return jax.device_get(test(state, keys))


def _keys(seeds: Sequence[int]) -> jax.Array:
    return jnp.stack([key_of(seed) for seed in seeds])


def _test_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, Salt.FINAL_TEST)


# Functions for `hierarchy.jitted`; `many` maps them over agents.


def _over_agents(f: Callable, many: bool, in_axes: Any = 0) -> Callable:
    """`f`, or for all agents: on each device for its own, where devices share the agents."""
    if not many:
        return f
    f = jax.vmap(f, in_axes)
    if devices.AGENTS not in jax.sharding.get_abstract_mesh().shape:
        return f
    own = P(devices.AGENTS)
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,)
    split = tuple(P() if axis is None else own for axis in axes)
    return jax.shard_map(f, in_specs=split, out_specs=own, check_vma=False)


def _init(hierarchy, trainer, many, key):
    return _over_agents(lambda key: devices.pin(trainer.init(key), specs), many)(key)


def _test(hierarchy, trainer, n, many, state, key):
    test = functools.partial(trainer.test, n_episodes=n)
    return _over_agents(test, many, (0, 0))(state, key)


def _chunk(hierarchy, trainer, many, carry):
    carry, metrics = _over_agents(trainer.chunk, many)(carry)
    return carry, devices.place(metrics, P())


def _test_metrics(hierarchy, trainer, many, state, i):
    return devices.place(_over_agents(trainer.test_metrics, many, (0, None))(state, i), P())


class DeviceSession(Session):
    """Chunks of jitted rounds, one agent or several in one call, on one device or a mesh."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        config, hierarchy = trainer.config, trainer.hierarchy
        many = config.seeds > 1
        self._mesh = _mesh(config)
        self._chunk: Any = hierarchy.jitted(_chunk, trainer, many, donate=0)
        key = _keys(config.agent_seeds) if many else key_of(config.seed)
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
        return check_finite(jax.block_until_ready(metrics))

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


class HostSession(Session):
    """A Collector that learns after each tick in a Gymnasium vector environment."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        self._collector = Collector(trainer.hierarchy, trainer.env)
        self._collector.reset(seed=trainer.config.seed)

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state."""
        return self._collector.state

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


class WorkerSession(Session):
    """Workers collect, rounds of all of them together; one learner learns between rounds."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        config, hierarchy = trainer.config, trainer.hierarchy
        n = config.n_env_instances // config.workers
        own = dataclasses.replace(config, n_env_instances=n, workers=0)
        self._state = hierarchy.init(key_of(config.seed), config.n_env_instances)
        self._version = 0
        self._workers = CWorkerSet(
            config.workers,
            index_parent=0,
            algo_factory=lambda *_: CollectionSettings(update_every=own.round_steps),
            actor_factory=lambda _: Trainer.build(own).hierarchy,
            storage_factory=lambda *_: None,  # rows are stored where they are learned from
            train_envs_factory=lambda *_: _envs_of_a_worker(own),
            initial_weights=weights_of(self._state, 0),
            seed=config.seed,
        )

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with the replay of all workers' rows."""
        return self._state

    def advance(self) -> dict[str, Any]:
        """Train up to the next interim test; returns the metrics."""
        hierarchy, config = self._trainer.hierarchy, self._trainer.config
        infos, learning, reward = [], [], 0.0
        for _ in range(config.rounds_per_chunk):
            data, info = self._workers.collect()
            state = hierarchy.add_rows(self._state, data["levels"], info["NumberSamples"])
            self._state, metrics = hierarchy.learn(state)
            self._version += 1
            self._workers.set_weights(weights_of(self._state, self._version))
            infos.append(info)
            learning.append(metrics)
            reward += float(data["rew"].sum())
        learning = jax.tree.map(lambda *x: jnp.stack(x), *learning)
        return {
            "n_episodes": sum(info["Episodes"] for info in infos),
            "return_sum": float(sum(info["Returns"].sum() for info in infos)),
            "success_sum": int(sum(info["Successes"].sum() for info in infos)),
            "reward_mean": reward / sum(info["NumberSamples"] for info in infos),
            **mean_over_updates(learning),
        }

    def close(self) -> None:
        """End the workers."""
        self._workers.stop()
        super().close()


def _envs_of_a_worker(config: TrainConfig) -> Any:
    """A worker's share of the environments."""
    n = config.n_env_instances
    if config.env.startswith(envs.GYMNASIUM):
        return envs.make(config.env, num_envs=n)[0]
    return *envs.make(config.env), n


def _test_on_host(trainer: Trainer, state: HierarchyState, n: int, seed: int) -> Episodes:
    """An exact number of whole episodes in an environment of their own, in eval mode."""
    env = trainer.make_test_env(min(n, trainer.config.n_env_instances))
    key = _test_key(key_of(seed))
    try:
        return whole_episodes(
            trainer.hierarchy, state, key, n, env.num_envs, env, max_steps=_MOST_TEST_TICKS
        ).episodes
    finally:
        env.close()
