"""A run in progress: in compiled chunks on devices, on the host, or with collection workers."""

from __future__ import annotations

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lrl_jax import checkpoints, devices, struct
from lrl_jax.collectors import (
    CollectionSettings,
    Collector,
    CWorkerSet,
    Episodes,
    RolloutCarry,
    weights_of,
)
from lrl_jax.collectors.evaluation import whole_episodes
from lrl_jax.collectors.stats import mean_over_updates
from lrl_jax.collectors.tick import specs
from lrl_jax.env_spec import is_gymnasium
from lrl_jax.hierarchies import HierarchyState
from lrl_jax.hierarchies.checkpoint import refuse_other_settings, settings_of
from lrl_jax.hierarchies.learners import is_setting
from lrl_jax.randomness import Salt, key_of
from lrl_jax.training.config import TrainConfig
from lrl_jax.training.sweeps import refuse_static
from lrl_jax.training.train import Trainer, make_env

#: Kind of a run's checkpoints.
RUN = "run"
_MOST_TEST_TICKS = 100_000


class Session(abc.ABC):
    """What the host loop of a run needs."""

    #: Whether `compile` does all of the compiling.
    compiles_apart = False
    _mesh: Mesh | None = None

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    @property
    @abc.abstractmethod
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""

    def compile(self, n_rounds: int) -> float:
        """Compile a chunk, where compilation can be timed separately; returns the seconds."""
        del n_rounds
        return 0.0

    @abc.abstractmethod
    def advance(self, n_rounds: int) -> dict[str, Any]:
        """Train for some rounds, to their end; returns the metrics."""

    @abc.abstractmethod
    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write a checkpoint that `begin` resumes from."""

    def test(self, i: int) -> dict[str, Any]:
        """The interim test after chunk i."""
        trainer, config = self._trainer, self._trainer.config
        if trainer.on_host:
            seed = Salt.INTERIM_TEST_ON_HOST + i
            return trainer.means_of(_test_on_host(trainer, self.state, config.test_episodes, seed))
        test = trainer.hierarchy.jitted(_test_metrics, trainer, config.n_agents > 1)
        with devices.use(self._mesh):
            return test(self.state, i)

    def result(self) -> HierarchyState:
        """The state for what follows training."""
        return self.state

    def close(self) -> None:
        """End what was started."""
        if self._trainer.on_host:
            self._trainer.env.close()


def begin(trainer: Trainer, checkpoint: Path | None = None, new_settings: bool = False) -> Session:
    """Start the run of a trainer, or resume it from a checkpoint.

    With `new_settings` the levels' settings take the place of those of the checkpoint.
    """
    kind = HostSession if trainer.on_host else DeviceSession
    if trainer.config.workers:
        kind = WorkerSession
    carry = None
    if checkpoint is not None:
        with devices.use(_mesh(trainer.config)):
            carry = read_checkpoint(trainer, checkpoint, new_settings)
            carry = renewed(trainer, carry) if new_settings else carry
    return kind(trainer, carry)


# ------------------------------------------------------------------- checkpoints


class HostCarry(struct.Node):
    """What a checkpoint holds where environments cannot be saved."""

    hierarchy: HierarchyState


def write_checkpoint(trainer: Trainer, path: Path, carry: Any, meta: dict[str, Any]) -> None:
    """Write what a run resumes from; `carry` has the hierarchies' state as `hierarchy`."""
    meta = {**meta, "hierarchy": settings_of(trainer.hierarchy)}
    checkpoints.write(path, carry, meta, kind=RUN)


def read_checkpoint(trainer: Trainer, path: Path, new_settings: bool = False) -> Any:
    """A RolloutCarry, or a HostCarry; leaves have a leading axis where there are several agents.

    Args:
        trainer: of the run.
        path: the checkpoint.
        new_settings: take it although the levels have other settings.

    Raises:
        ValueError: for a file that is damaged, or of a run with other arrays or settings.
    """
    if not new_settings:
        saved = checkpoints.read_meta(path, kind=RUN)["hierarchy"]
        refuse_other_settings(trainer.hierarchy, saved, path)
    return checkpoints.read(path, jax.eval_shape(lambda: begun(trainer)), kind=RUN)


def begun(trainer: Trainer) -> Any:
    """What a run begins with: a RolloutCarry, or a HostCarry."""
    config = trainer.config
    key = key_of(config.seed)
    if trainer.on_host or config.workers:
        n = config.n_env_instances
        return HostCarry(trainer.hierarchy.init(key, n, trainer.learners))
    if config.n_agents == 1 and _mesh(config) is None:
        return trainer.init(key)
    settings: dict[str, jax.Array] = {}
    if config.n_agents > 1:
        key, of_agents = _keys(config.agent_seeds), config.agent_settings
        settings = {path: jnp.array([x[path] for x in of_agents]) for path in of_agents[0]}
    return trainer.hierarchy.jitted(_init, trainer, config.n_agents > 1)(key, settings)


def renewed(trainer: Trainer, carry: Any) -> Any:
    """A carry with the levels' settings instead of those that its learners hold."""
    fresh = begun(trainer).hierarchy

    def own(path, old, new):
        names = {getattr(key, "name", None) for key in path}
        return new if is_setting(path) or names & {"learn_from", "learn_until"} else old

    state = jax.tree_util.tree_map_with_path(own, carry.hierarchy, fresh)
    return carry.replace(hierarchy=state.replace(stream=carry.hierarchy.stream))


def _seed_after(trainer: Trainer, state: HierarchyState) -> int:
    """Seed of the episodes that begin after a checkpoint."""
    words = np.random.SeedSequence([trainer.config.seed, int(state.n_total_env_steps)])
    return int(words.generate_state(1, np.uint64)[0] >> 2)


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


def _init(hierarchy, trainer, many, key, settings):
    def begin(key, settings):
        return devices.pin(trainer.init(key, settings), specs)

    return _over_agents(begin, many, (0, 0))(key, settings)


def _test(hierarchy, trainer, n, many, state, key):
    test = functools.partial(trainer.test, n_episodes=n)
    return _over_agents(test, many, (0, 0))(state, key)


def _chunk(hierarchy, trainer, n_rounds, many, carry):
    chunk = functools.partial(trainer.chunk, n_rounds=n_rounds)
    carry, metrics = _over_agents(chunk, many)(carry)
    return carry, devices.place(metrics, P())


def _test_metrics(hierarchy, trainer, many, state, i):
    return devices.place(_over_agents(trainer.test_metrics, many, (0, None))(state, i), P())


class DeviceSession(Session):
    """Chunks of jitted rounds, one agent or several in one call, on one device or a mesh."""

    compiles_apart = True

    def __init__(self, trainer: Trainer, carry: Any = None):
        super().__init__(trainer)
        self._many = trainer.config.n_agents > 1
        self._mesh = _mesh(trainer.config)
        self._compiled: dict[int, Any] = {}
        if carry is None and trainer.config.sweep:
            refuse_static(trainer)
        with devices.use(self._mesh):
            if carry is None:
                # Leaves may share arrays (constants); what is donated must not.
                carry = jax.tree.map(lambda x: x.copy(), begun(trainer))
            elif self._mesh is not None:
                carry = jax.device_put(carry, devices.shardings(self._specs(carry), self._mesh))
        self._carry = carry

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with a leading axis where there are several agents."""
        return self._carry.hierarchy

    def compile(self, n_rounds: int) -> float:
        """Compile a chunk; returns the seconds."""
        if n_rounds in self._compiled:
            return 0.0
        began = time.monotonic()
        hierarchy = self._trainer.hierarchy
        chunk: Any = hierarchy.jitted(_chunk, self._trainer, n_rounds, self._many, donate=0)
        with devices.use(self._mesh):
            self._compiled[n_rounds] = chunk.lower(self._carry).compile()
        return time.monotonic() - began

    def advance(self, n_rounds: int) -> dict[str, Any]:
        """Train for some rounds; returns the metrics."""
        self.compile(n_rounds)
        self._carry, metrics = self._compiled[n_rounds](self._carry)
        return jax.block_until_ready(metrics)

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write all of the carry: environments, streams, hierarchies with their replay."""
        write_checkpoint(self._trainer, path, self._carry, meta)

    def _specs(self, carry: RolloutCarry) -> Any:
        """How a carry is split over the devices of the mesh."""
        assert self._mesh is not None
        if devices.AGENTS in self._mesh.axis_names:
            return jax.tree.map(lambda _: P(devices.AGENTS), carry)
        return specs(carry)

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
    return (jax.vmap(build) if trainer.config.n_agents > 1 else build)(learners, total)


class HostSession(Session):
    """A Collector that learns after each tick in a Gymnasium vector environment.

    Such environments cannot be saved. All of them begin new episodes after each checkpoint, with
    seeds that follow from the number of steps, so that a resumed run is the same.
    """

    def __init__(self, trainer: Trainer, carry: Any = None):
        super().__init__(trainer)
        state = (begun(trainer) if carry is None else carry).hierarchy
        self._collector = Collector(
            trainer.hierarchy, trainer.env, state=state, nan=trainer.config.nan
        )
        seed = trainer.config.seed if carry is None else _seed_after(trainer, state)
        self._collector.reset(seed=seed)

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state."""
        return self._collector.state

    def advance(self, n_rounds: int) -> dict[str, Any]:
        """Train for some rounds; returns the metrics."""
        n_steps = n_rounds * self._trainer.config.round_ticks
        stats = self._collector.collect(n_steps=n_steps, learn=True)
        return {
            "n_episodes": stats.n_collected_episodes,
            "return_sum": float(stats.returns.sum()),
            "success_sum": int(stats.successes.sum()),
            "reward_mean": stats.mean_reward,
            **stats.learning,
        }

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write the hierarchy's state, and begin new episodes."""
        write_checkpoint(self._trainer, path, HostCarry(self.state), meta)
        self._collector.reset(seed=_seed_after(self._trainer, self.state))


class WorkerSession(Session):
    """Workers collect in rounds, all of them together; this process learns between rounds.

    After a checkpoint is read, workers begin new episodes, with seeds that follow from the number
    of steps.
    """

    def __init__(self, trainer: Trainer, carry: Any = None):
        super().__init__(trainer)
        self._state = (begun(trainer) if carry is None else carry).hierarchy
        seed = trainer.config.seed if carry is None else _seed_after(trainer, self._state)
        config = trainer.config
        n = config.n_env_instances // config.workers
        own = dataclasses.replace(config, n_env_instances=n, workers=0)
        self._version = 0
        self._workers = CWorkerSet(
            config.workers,
            index_parent=0,
            algo_factory=lambda *_: CollectionSettings(update_every=own.round_steps),
            actor_factory=lambda _: Trainer.build(own).hierarchy,
            storage_factory=lambda *_: None,  # rows are stored where they are learned from
            train_envs_factory=lambda *_: _envs_of_a_worker(own),
            initial_weights=weights_of(self._state, 0),
            seed=seed,
        )

    @property
    def state(self) -> HierarchyState:
        """The hierarchy's state, with the replay of all workers' rows."""
        return self._state

    def advance(self, n_rounds: int) -> dict[str, Any]:
        """Train for some rounds; returns the metrics."""
        hierarchy = self._trainer.hierarchy
        infos, learning, reward = [], [], 0.0
        for _ in range(n_rounds):
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

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write the hierarchy's state; workers continue."""
        write_checkpoint(self._trainer, path, HostCarry(self._state), meta)

    def close(self) -> None:
        """End the workers."""
        self._workers.stop()
        super().close()


def _envs_of_a_worker(config: TrainConfig) -> Any:
    """A worker's share of the environments."""
    n = config.n_env_instances
    env, params = make_env(config)
    return env if is_gymnasium(env) else (env, params, n)


def _test_on_host(trainer: Trainer, state: HierarchyState, n: int, seed: int) -> Episodes:
    """An exact number of whole episodes in a separate environment, in eval mode."""
    config = trainer.config
    env = trainer.make_test_env(min(n, config.n_env_instances))
    key = _test_key(key_of(seed))
    limit = config.test_max_steps or _MOST_TEST_TICKS
    try:
        return whole_episodes(
            trainer.hierarchy, state, key, n, env.num_envs, env, max_steps=limit
        ).episodes
    finally:
        env.close()
