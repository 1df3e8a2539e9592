"""CWorker: collects samples with a hierarchy it is given, stamps them, sends them.

The words are those of PyTorchRL's collection workers. A worker's actor is a Hierarchy, its weights
are the learners of the levels, and what it sends are environment transitions and the rows that the
levels closed, ready for `Hierarchy.add_rows` where the hierarchy learns.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import buffers
from lrl_jax.collectors.collector import Collector
from lrl_jax.collectors.evaluation import whole_episodes
from lrl_jax.collectors.tick import own_env
from lrl_jax.collectors.worker_data import checked_weights, compress, join, pack, unpack
from lrl_jax.devices import resolve_device
from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.randomness import Salt, key_of
from lrl_jax.settings import check_float, check_int

COMPONENTS = ("actor", "algo", "storage", "envs_train", "envs_test")
_SLICES = 16  # times a worker checks for a stop after it has its minimum of samples


@dataclasses.dataclass
class CollectionSettings:
    """What a worker reads of an algorithm; any object with these attributes will do.

    Attributes:
        update_every: samples (environment steps of all instances) of a rollout.
        test_every: rollouts between evaluations; 0 for none.
        num_test_episodes: episodes of an evaluation.
        start_steps: samples with random actions at the start, which the hierarchy does not see.
    """

    update_every: int = 1000
    test_every: int = 0
    num_test_episodes: int = 5
    start_steps: int = 0


def no_envs(device: Any, index_worker: int, index_parent: int, mode: str) -> None:
    """The factory of a worker without environments of that mode."""


class CWorker:
    """Collects rollouts and evaluates, with weights that it is given.

    Args:
        index_worker: of this worker, from 0 on.
        index_parent: index of the process it collects for.
        algo_factory: (device, actor) -> settings, such as `CollectionSettings`.
        actor_factory: (device) -> Hierarchy. Its levels store rows where their buffer_size is not
            0; a worker keeps those of a rollout only, whatever their number.
        storage_factory: (device, actor, algo) -> replay buffer of transitions, or how many rows it
            holds, or None for none.
        fraction_samples: fraction of its rollout a worker must finish before it obeys a stop.
        compress_data_to_send: whether data is compressed; `decompress` undoes it, to the bit.
        train_envs_factory, test_envs_factory: (device, index_worker, index_parent, mode) -> a
            Gymnasium environment, single or vector; (env, params, n) for n instances of a gymnax
            environment; or None. The mode is "train" or "test".
        initial_weights: see `set_weights`.
        device: where it computes, such as "cpu" or "gpu:0".
        seed: of all workers; each draws from a separate stream.

    Attributes:
        index_worker, index_parent, fraction_samples, device, compress_data_to_send: as given.
        actor: the Hierarchy.
        algo: the settings.
        envs_train, envs_test: the environments.
        storage: the replay buffer, or None.
        iter: rollouts collected and sent.
        actor_version: of the weights.
        update_every: samples of a rollout.
        obs: latest observation, [n, ...].
        rhs: memory of the levels, a tuple, leaves [n, ...].
        done: whether the latest step ended an episode, bool [n].

    Raises:
        ValueError, TypeError: for components that do not fit each other.
    """

    def __init__(
        self,
        index_worker: int,
        index_parent: int,
        algo_factory: Callable[..., Any],
        actor_factory: Callable[..., Hierarchy],
        storage_factory: Callable[..., Any],
        fraction_samples: float = 1.0,
        compress_data_to_send: bool = False,
        train_envs_factory: Callable[..., Any] = no_envs,
        test_envs_factory: Callable[..., Any] = no_envs,
        initial_weights: Any = None,
        device: Any = None,
        *,
        seed: int = 0,
    ):
        self.index_worker = check_int("index_worker", index_worker, 0)
        self.index_parent = check_int("index_parent", index_parent, 0)
        self.fraction_samples = check_float("fraction_samples", fraction_samples, 0.0, 1.0)
        self.compress_data_to_send = bool(compress_data_to_send)
        self.device = resolve_device(device)
        entropy = [checks.seed_of("seed", seed), self.index_parent, self.index_worker]
        self._entropy, self._n_begun = entropy, 0
        self._seed = self._own_seed(0)
        self.iter, self.actor_version = 0, 0
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._pending: dict[str, Any] | None = None
        self._collects, self._stopped = False, False
        actor = _checked_actor(actor_factory(self.device))
        self.algo = _checked_settings(algo_factory(self.device, actor))
        envs_train = train_envs_factory(self.device, index_worker, index_parent, "train")
        self.envs_test = test_envs_factory(self.device, index_worker, index_parent, "test")
        self._storage = storage_factory(self.device, actor, self.algo)
        self._n_random = getattr(self.algo, "start_steps", 0)
        # What was collected and not sent yet.
        self._samples: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._begin(actor, envs_train, None, self._storage)
        if initial_weights is not None:
            self.set_weights(initial_weights)

    # ------------------------------------------------------------------ state

    def _own_seed(self, i: int) -> int:
        """Of the i-th environments or actor, so that none repeats another's draws."""
        sequence = np.random.SeedSequence([*self._entropy, i])
        return int(sequence.generate_state(1, np.uint32)[0])

    def _begin(
        self, actor: Hierarchy, envs: Any, state: HierarchyState | None, storage: Any
    ) -> None:
        """Act with this actor in these environments, from a reset; without a state, from scratch.

        Nothing changes where they do not fit.
        """
        _check_test_envs(actor, self.envs_test)
        env, params, n = (None, None, 1) if envs is None else _parts(envs)
        version = self.actor_version
        if state is None:  # weights that all workers begin with
            state, version = actor.init(key_of(self._entropy[0]), n), 0
        elif envs is not None and state.n_env_instances != n:
            state = actor.set_n_env_instances(state, n)
        collector = None
        if envs is not None:
            _check_whole_ticks(envs, n, **_ticks_of(self.algo))
            if isinstance(storage, buffers.Buffer) and storage.n_env_instances != n:
                size = storage.capacity * storage.n_env_instances
                storage = buffers.redistribute(storage, n, max(size, n))
            collector = Collector(
                actor,
                env,
                device=self.device,
                env_params=params,
                n_env_instances=n,
                state=state,
                buffer=storage,
                exploration_noise=True,
            )
            collector.reset(seed=self._own_seed(self._n_begun), reset_buffer=False)
        self.actor, self.envs_train, self._collector, self._state = actor, envs, collector, state
        self._n_begun, self.actor_version = self._n_begun + 1, version
        self.done = np.zeros(self.n_env_instances, bool)
        # Version that chose the actions whose rows the levels have not closed yet.
        self._open_version = np.full((actor.n_levels, self.n_env_instances), version)

    @property
    def n_env_instances(self) -> int:
        """Instances of the training environments; 0 without."""
        return 0 if self._collector is None else self._collector.n_env_instances

    @property
    def _present(self) -> HierarchyState:
        return self._state if self._collector is None else self._collector.state

    @property
    def storage(self) -> Any:
        """Replay buffer of environment transitions, or None."""
        return self._storage if self._collector is None else self._collector.buffer

    @property
    def update_every(self) -> int:
        """Samples of a rollout."""
        return check_int("update_every", self.algo.update_every, 1)

    @property
    def obs(self) -> Any:
        """Latest observation of the training environments, [n, ...]."""
        return self._training()._ready().obs

    @property
    def rhs(self) -> tuple[Any, ...]:
        """Memory of the levels, leaves [n, ...]."""
        return tuple(level.memory for level in self._present.levels)

    def _training(self) -> Collector:
        if self._collector is None:
            raise ValueError(
                f"worker {self.index_worker} has no training environments: give train_envs_factory."
            )
        return self._collector

    # -------------------------------------------------------------- collecting

    def collect_data(
        self, listen_to: Sequence[str] = (), data_to_cpu: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """Collect a rollout and return it.

        Args:
            listen_to: words of `tell` that make the worker stop early.
            data_to_cpu: whether arrays are NumPy's; else they are on the worker's device.

        Returns:
            Data: a dict of arrays, one row per sample (see `collect_train_data`), bytes for
            `decompress` where data is compressed; and info: Episodes, Returns, Lengths, Successes,
            Time, ActorVersion, NumberSamples, IndexWorker, and TestReturn where one was due.
        """
        seconds, _ = self.collect_train_data(listen_to=listen_to)
        every, test = getattr(self.algo, "test_every", 0), {}
        if every and self.envs_test is not None and (self.iter + 1) % every == 0:
            test = {"TestReturn": self.evaluate()}  # if it raises, the samples stay
        data, counts = join(self._samples)
        version = int(data["actor_version"][-1])
        stamps = {"Time": seconds, "ActorVersion": version, "IndexWorker": self.index_worker}
        info = counts | stamps | test
        self._samples = []
        self.iter += 1
        if self.compress_data_to_send:
            return compress(data), info
        return (data if data_to_cpu else jax.device_put(data, self.device)), info

    def collect_train_data(
        self, num_steps: int | None = None, listen_to: Sequence[str] = ()
    ) -> tuple[float, float | None]:
        """Collect samples and keep them for `collect_data` to send.

        Told to stop, the worker does so once it has `fraction_samples` of them, with exactly the
        samples it has.

        Args:
            num_steps: samples; `update_every` if None.
            listen_to: words of `tell` that make it stop.

        Returns:
            Seconds, and the mean return of the episodes that ended (None without).
        """
        if isinstance(listen_to, str):
            raise TypeError(f"listen_to must be a list of words, got the word {listen_to!r}.")
        collector = self._training()
        target = self.update_every
        n = collector.n_env_instances
        if num_steps is not None:
            target = check_int("num_steps", num_steps, 1)
            _check_whole_ticks(self.envs_train, n, num_steps=target)
        least = target
        if listen_to:  # whole ticks, so that no instance has to sit out on the way
            ticks = -(-int(np.ceil(self.fraction_samples * target)) // n)
            least = min(target, max(1, ticks) * n)
        step = max(1, (target - least) // (_SLICES * n)) * n
        returns, taken, began = [], 0, time.monotonic()
        with self._lock:
            self._collects = True
        try:
            self._apply_pending()
            collector.state = _with_room(collector.state, target)
            # What was reset since the last rollout starts again before stamps are looked at.
            collector.settle()
            while taken < target:
                if taken >= least and not self._told.isdisjoint(listen_to):
                    break
                amount = least - taken if taken < least else min(step, target - taken)
                random = self._n_random > 0
                if random:
                    amount = min(amount, self._n_random)
                returns.append(self._collect(collector, amount, random))
                taken += amount
                self._n_random -= amount if random else 0
        except BaseException:
            # No trajectory runs over the hole; rows without their transitions are not sent.
            collector.state = self.actor.reset(collector.state)
            raise
        finally:
            with self._lock:
                self._collects = False
                self._told -= set(listen_to)
        seconds = time.monotonic() - began
        returned = np.concatenate(returns)
        return seconds, float(returned.mean()) if len(returned) else None

    def _collect(self, collector: Collector, amount: int, random: bool) -> np.ndarray:
        """So many samples, kept with their stamps; gives the returns of episodes that ended."""
        state = collector.state
        open_before = [np.asarray(s.elapsed_env_steps) > 0 for s in state.levels]
        stats, transitions = collector.collect(
            n_total_steps=amount, random=random, record_transitions=True
        )
        valid = np.asarray(transitions.valid)
        instance = np.nonzero(valid)[1]
        data: dict[str, Any] = {
            name: np.asarray(getattr(transitions, name))[valid]
            for name in ("obs", "act", "rew", "terminated", "truncated", "obs_next")
        }
        data["instance"] = instance.astype(np.int32)
        data["actor_version"] = np.full(len(instance), self.actor_version)
        last = valid.shape[0] - 1 - np.argmax(valid[::-1], 0)
        ended = np.asarray(transitions.terminated) | np.asarray(transitions.truncated)
        self.done = np.where(valid.any(0), ended[last, np.arange(len(last))], self.done)
        data["levels"] = self._drain(collector, open_before)
        counts = {
            "NumberSamples": amount,
            "Episodes": stats.n_collected_episodes,
            "Returns": stats.returns,
            "Lengths": stats.lens,
            "Successes": stats.successes,
        }
        self._samples.append((data, counts))
        return stats.returns

    def _drain(self, collector: Collector, open_before: list[np.ndarray]) -> list[Any]:
        """Rows that the levels closed, with the version that made each decision."""
        state = collector.state
        levels: list[Any] = list(state.levels)
        out: list[Any] = [None] * len(levels)
        for i, level in enumerate(levels):
            if level.buffer is None:
                continue
            rows, buffer = buffers.drain(level.buffer)
            opened = np.where(open_before[i], self._open_version[i], self.actor_version)
            closed, first = np.unique(rows["instance"], return_index=True)  # grouped by instance
            version = np.full(len(rows["instance"]), self.actor_version)
            version[first] = opened[closed]
            opened[closed] = self.actor_version
            self._open_version[i] = opened
            levels[i], out[i] = level.replace(buffer=buffer), rows | {"actor_version": version}
        collector.state = state.replace(levels=tuple(levels))
        return out

    def tell(self, word: str) -> None:
        """Say a word that the worker may listen to; also while it collects."""
        self._told.add(word)

    def evaluate(self) -> float:
        """Mean return of exactly `algo.num_test_episodes` episodes in the test environments.

        From a reset, without noise, in equal shares per instance, give or take one. Training
        environments are not touched, and each evaluation begins the same way.
        """
        if self.envs_test is None:
            raise ValueError(
                f"worker {self.index_worker} has no test environments: give test_envs_factory."
            )
        env, params, n = _parts(self.envs_test)
        env, params = own_env(self.actor, env, params)
        key = jax.random.key((self._seed ^ Salt.WORKER_TEST) & 0x7FFFFFFF)
        episodes = self.algo.num_test_episodes
        stats = whole_episodes(self.actor, self._present, key, episodes, n, env, params)
        return float(stats.returns.mean())

    # ----------------------------------------------------------------- changes

    def set_weights(self, actor_weights: dict[str, Any]) -> None:
        """Take other weights; while the worker collects, they wait for the next rollout.

        Args:
            actor_weights: {"ActorVersion": int, "ActorWeights": learners}, see `weights_of`; with
                "EnvSteps", the total of environment steps that schedules and warm-ups go by. Or a
                reference of Ray's to such a dict.
        """
        weights = checked_weights(actor_weights)
        with self._lock:
            self._pending = weights
            if not self._collects:
                self._apply_pending()

    def _apply_pending(self) -> None:
        """Take the weights that wait; where a rollout could begin meanwhile, under the lock."""
        weights, self._pending = self._pending, None
        if weights is None:
            return
        learners = [unpack(x) for x in weights["ActorWeights"]]
        learners = jax.tree.map(jnp.asarray, learners)
        state = self.actor.with_learners(
            self._present, learners, weights.get("EnvSteps"), with_settings=True
        )
        if self._collector is None:
            self._state = state
        else:
            self._collector.state = state
        self.actor_version = int(weights["ActorVersion"])

    def replace_agent_component(
        self, component_name: str, new_component_factory: Callable[..., Any]
    ) -> None:
        """Replace a component by what its factory makes; environments begin from a reset.

        Args:
            component_name: one of actor, algo, storage, envs_train, envs_test.
            new_component_factory: called like the factory that made the old one.

        Raises:
            ValueError: for other names, or a component that does not fit; nothing changes then.
        """
        name = component_name
        if name not in COMPONENTS:
            raise ValueError(f"there is no component {name!r}: use one of {', '.join(COMPONENTS)}.")
        if self._samples and name in ("actor", "envs_train"):
            raise ValueError(
                f"worker {self.index_worker} has samples of the present {name} that were not sent: "
                f"collect_data() first."
            )
        make = functools.partial(new_component_factory, self.device)
        place = self.index_worker, self.index_parent
        if name == "algo":
            self._set_algo(make(self.actor))
        elif name == "storage":
            new = make(self.actor, self.algo)
            if self._collector is not None:
                self._collector.buffer = new
            self._storage = new
        elif name == "envs_test":
            new, old = make(*place, "test"), self.envs_test
            _check_test_envs(self.actor, new)
            self.envs_test = new
            _close(old)
        elif name == "envs_train":
            old = self.envs_train
            self._begin(self.actor, make(*place, "train"), self._present, self.storage)
            _close(old)
        else:
            self._begin(_checked_actor(make()), self.envs_train, None, self.storage)

    def _set_algo(self, algo: Any) -> None:
        algo = _checked_settings(algo)
        if self._collector is not None:
            _check_whole_ticks(self.envs_train, self.n_env_instances, **_ticks_of(algo))
        self.algo = algo

    def update_algorithm_parameter(self, parameter_name: str, new_parameter_value: Any) -> None:
        """Change an attribute of the settings.

        Raises:
            ValueError: if there is none of that name, or the value does not fit.
        """
        if parameter_name.startswith("_") or not hasattr(self.algo, parameter_name):
            known = sorted(name for name in vars(self.algo) if not name.startswith("_"))
            raise ValueError(f"the algorithm has no parameter {parameter_name!r}: it has {known}.")
        new = copy.copy(self.algo)
        if dataclasses.is_dataclass(new) and not isinstance(new, type):
            new = dataclasses.replace(new, **{parameter_name: new_parameter_value})
        else:
            setattr(new, parameter_name, new_parameter_value)
        self._set_algo(new)
        if parameter_name == "start_steps":
            self._n_random = self.algo.start_steps

    def update_storage_parameter(self, parameter_name: str, new_parameter_value: Any) -> None:
        """Change the `buffer_size` of the storage; its newest rows are kept.

        Raises:
            ValueError: if there is no storage, or no parameter of that name.
        """
        storage = self.storage
        if not isinstance(storage, buffers.Buffer):
            raise ValueError(f"worker {self.index_worker} has no storage.")
        if parameter_name != "buffer_size":
            raise ValueError(
                f"the storage has no parameter {parameter_name!r}: it has ['buffer_size']."
            )
        n = storage.n_env_instances
        size = check_int("buffer_size", new_parameter_value, n)
        self._training().buffer = buffers.redistribute(storage, n, size)

    def end_start(self) -> None:
        """Let the hierarchy act from now on, whatever is left of `start_steps`."""
        self._n_random = 0

    def get_attribute(self, name: str) -> Any:
        """An attribute, for handles of remote workers, which have methods only."""
        if name.startswith("_") or not hasattr(self, name):
            raise ValueError(f"a worker has no attribute {name!r}.")
        return pack(getattr(self, name)) if name in ("obs", "rhs") else getattr(self, name)

    def process_id(self) -> int:
        """Of the process that the worker lives in."""
        return os.getpid()

    def stop(self) -> None:
        """Close the environments; can be called twice."""
        if not self._stopped:
            self._stopped = True
            _close(self.envs_train)
            _close(self.envs_test)


def _with_room(state: HierarchyState, samples: int) -> HierarchyState:
    """With empty rings for the rows that levels may close in this many samples."""
    rows = -(-samples // state.n_env_instances) + 1  # a reset closes one more

    def roomy(level):
        if level.buffer is None:
            return level
        fits = rows <= level.buffer.capacity <= 2 * rows
        return level.replace(buffer=buffers.clear(level.buffer, None if fits else rows))

    return state.replace(levels=tuple(roomy(level) for level in state.levels))


def _checked_settings(algo: Any) -> Any:
    """Settings with whole numbers that can be."""
    check_int("update_every", algo.update_every, 1)
    for name, least in (("test_every", 0), ("num_test_episodes", 1), ("start_steps", 0)):
        if hasattr(algo, name):
            check_int(name, getattr(algo, name), least)
    return algo


def _ticks_of(algo: Any) -> dict[str, int]:
    return {"update_every": algo.update_every, "start_steps": getattr(algo, "start_steps", 0)}


def _check_whole_ticks(envs: Any, n: int, **samples: int) -> None:
    """Refuse samples that would leave out an instance of a vector environment, which cuts it."""
    for name, number in samples.items():
        if is_gymnasium(envs) and number % n:
            raise ValueError(
                f"{name}={number} samples are not a whole number of steps of {n} instances, and a "
                f"vector environment cannot pause some of them: use {number - number % n + n}."
            )


def _check_test_envs(actor: Hierarchy, envs: Any) -> None:
    if envs is not None:
        own_env(actor, *_parts(envs)[:2])


def _checked_actor(actor: Any) -> Hierarchy:
    if not isinstance(actor, Hierarchy):
        raise TypeError(f"actor_factory must return a Hierarchy, got {type(actor).__name__}.")
    return actor.train()


def _parts(envs: Any) -> tuple[Any, Any, int]:
    """Environment, parameters and instances of what a factory returned."""
    if is_gymnasium(envs):
        return envs, None, getattr(envs, "num_envs", 1)
    if isinstance(envs, tuple) and len(envs) == 3:
        env, params, n = envs
        return env, params, check_int("instances of the environment", n, 1)
    raise TypeError(
        f"an environment factory must return a Gymnasium environment, or (env, params, n) for n "
        f"instances of a gymnax environment, got {envs!r}."
    )


def _close(envs: Any) -> None:
    if is_gymnasium(envs):
        envs.close()
