"""CWorkerSet: collection workers in separate processes, scheduled by Ray.

Ray starts the workers, moves what they collect, and notices when one dies. This module decides
which worker does what, and joins the rollouts that come back, with the lag of their policies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lrl_jax.collectors.c_worker import CWorker, no_envs
from lrl_jax.collectors.ray_pool import RayPool, WorkerError, checked_config
from lrl_jax.collectors.worker_data import checked_weights, decompress, join
from lrl_jax.settings import check_float, check_int


class CWorkerSet(contextlib.AbstractContextManager):
    """A set of CWorkers, remote ones on Ray (extra "distributed") or one in this process.

    Args:
        num_workers: remote workers; 0 for one local worker, without Ray.
        index_parent: index of the process they collect for.
        algo_factory, actor_factory, storage_factory: see `CWorker`.
        train_envs_factory, test_envs_factory: see `CWorker`.
        fraction_samples, compress_data_to_send, initial_weights: see `CWorker`.
        local_device: device of the local worker.
        total_parent_workers: how many parents there are in all.
        worker_remote_config: what Ray gives each remote worker: num_cpus, num_gpus, memory (bytes)
            and resources. One CPU by default; workers without a GPU run JAX on the CPU.
        address: of a Ray cluster to join; None for the one this process is connected to, or a new
            one on this machine, which `stop` ends.
        max_lag: how many versions older than the latest a rollout from `collect_async` may be, if
            weights are set once between two calls; None for no bound.
        max_restarts: how often a worker that raised or died is restarted, with the latest
            weights and without `start_steps`; 0: it is an error.
        timeout: seconds after which a missing answer of a worker is an error, be it a rollout, an
            evaluation or a change; None for never.
        seed: of all workers; each draws from a separate stream.

    Attributes:
        worker_class: CWorker.
        remote_config: what Ray gives each worker.
        worker_params: keyword arguments of each worker.
        num_workers: remote workers.
        actor_version: of the latest weights.

    Raises:
        ImportError: without Ray, for num_workers above 0.
        ValueError: for resources that the cluster does not have.
        WorkerError: for a worker that cannot start.
    """

    worker_class = CWorker

    def __init__(
        self,
        num_workers: int,
        index_parent: int,
        algo_factory: Callable[..., Any],
        actor_factory: Callable[..., Any],
        storage_factory: Callable[..., Any],
        local_device: Any = None,
        initial_weights: Any = None,
        fraction_samples: float = 1.0,
        total_parent_workers: int = 0,
        compress_data_to_send: bool = False,
        train_envs_factory: Callable[..., Any] = no_envs,
        test_envs_factory: Callable[..., Any] = no_envs,
        worker_remote_config: Mapping[str, Any] | None = None,
        *,
        address: str | None = None,
        max_lag: int | None = None,
        max_restarts: int = 0,
        timeout: float | None = None,
        seed: int = 0,
    ):
        self.num_workers = check_int("num_workers", num_workers, 0)
        self.total_parent_workers = check_int("total_parent_workers", total_parent_workers, 0)
        self.max_lag = None if max_lag is None else check_int("max_lag", max_lag, 0)
        self.max_restarts = check_int("max_restarts", max_restarts, 0)
        self.timeout = None if timeout is None else check_float("timeout", timeout, 0.0, above=True)
        self.remote_config = checked_config(worker_remote_config)
        self.worker_params: dict[str, Any] = {
            "index_parent": index_parent,
            "algo_factory": algo_factory,
            "actor_factory": actor_factory,
            "storage_factory": storage_factory,
            "fraction_samples": fraction_samples,
            "compress_data_to_send": compress_data_to_send,
            "train_envs_factory": train_envs_factory,
            "test_envs_factory": test_envs_factory,
            "seed": seed,
        }
        self._local_device = local_device
        self._weights: dict[str, Any] | None = None
        self.actor_version = 0
        self._local: CWorker | None = None
        self._pool: Any = None  # of the remote workers, where there are some
        self._instances: dict[int, int] = {}
        # What a worker that starts later needs too: the last change of each thing, in order.
        self._changes: dict[tuple[str, Any], tuple[Any, ...]] = {}
        # Rollouts that have not come: who collects them, with which version, since when.
        self._flying: dict[Any, tuple[int, int, float]] = {}
        self._arrived: list[tuple[Any, dict[str, Any]]] = []
        self._set: list[tuple[Any, int]] = []  # weights whose arrival was not checked yet
        self._n_gathers, self._stopped = 0, False
        self.restarts: dict[int, int] = {}
        if self.num_workers:
            self._pool = RayPool(self.worker_class, self.remote_config, address, self.timeout)
        try:
            if initial_weights is not None:
                self._weights = checked_weights(initial_weights)
                self.actor_version = int(self._weights["ActorVersion"])
            if self._pool is None:
                self.local_worker()
                return
            self.add_workers(self.num_workers)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def create_factory(
        cls,
        num_workers: int,
        algo_factory: Callable[..., Any],
        actor_factory: Callable[..., Any],
        storage_factory: Callable[..., Any],
        test_envs_factory: Callable[..., Any] = no_envs,
        train_envs_factory: Callable[..., Any] = no_envs,
        total_parent_workers: int = 0,
        col_fraction_samples: float = 1.0,
        compress_data_to_send: bool = False,
        col_worker_resources: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Callable[[Any, dict[str, Any] | None, int], CWorkerSet]:
        """A function (device, initial_weights, index_parent) that makes a set.

        Args:
            num_workers, total_parent_workers, compress_data_to_send: of the set.
            algo_factory, actor_factory, storage_factory: of the set.
            test_envs_factory, train_envs_factory: of the set.
            col_fraction_samples: its `fraction_samples`.
            col_worker_resources: its `worker_remote_config`.
            **more: further keyword arguments of the set.
        """

        return lambda device, initial_weights, index_parent: cls(
            num_workers=num_workers,
            index_parent=index_parent,
            algo_factory=algo_factory,
            actor_factory=actor_factory,
            storage_factory=storage_factory,
            local_device=device,
            initial_weights=initial_weights,
            fraction_samples=col_fraction_samples,
            total_parent_workers=total_parent_workers,
            compress_data_to_send=compress_data_to_send,
            train_envs_factory=train_envs_factory,
            test_envs_factory=test_envs_factory,
            worker_remote_config=col_worker_resources,
            **more,
        )

    # ----------------------------------------------------------------- workers

    def local_worker(self) -> CWorker:
        """The worker of this process; made when it is first asked for, index `num_workers`."""
        self._check_running()
        if self._local is None:
            index, device = self.num_workers, self._local_device
            self._local = self.worker_class(index, device=device, **self.worker_params)
            self._prepare(index)
        return self._local

    def remote_workers(self) -> list[Any]:
        """Ray's handles of the remote workers, in the order of their index."""
        return [] if self._pool is None else list(self._pool.actors.values())

    def add_workers(self, num_workers: int) -> None:
        """Start further remote workers, in a set that has some."""
        self._check_running()
        if self._pool is None:
            raise ValueError("a set of num_workers=0 collects in this process: make another one.")
        if self._local is not None:
            raise ValueError("add workers before local_worker() is asked for: it has their index.")
        first = len(self._pool.actors)
        new = range(first, first + check_int("num_workers", num_workers, 1))
        self._pool.add(new, self._params)
        try:
            for i in new:
                self._prepare(i)
        except BaseException:
            self._pool.remove(new)
            raise
        self.num_workers = len(self._pool.actors)

    def _params(self, index: int) -> dict[str, Any]:
        """Keyword arguments of a remote worker; one that begins again draws from another stream."""
        seed = self.worker_params["seed"] + 7919 * self.restarts.get(index, 0)
        return {**self.worker_params, "seed": seed}

    def _prepare(self, index: int) -> None:
        """Bring a worker that has begun to where the others are."""
        for (name, _), arguments in self._changes.items():
            self._ask(index, name, *arguments)
        if self._weights is not None:
            self._ask(index, "set_weights", self._weights)
        self._instances[index] = self._ask(index, "get_attribute", "n_env_instances")

    def _ask(self, index: int, name: str, *arguments: Any) -> Any:
        """Call a method of a worker, wherever it is, and wait for what comes back."""
        if self._local is not None and index == self._local.index_worker:
            return getattr(self._local, name)(*arguments)
        return self._pool.ask(index, name, *arguments)

    # --------------------------------------------------------------- collecting

    def collect(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Let all workers collect a rollout, and join what they bring.

        Once half of them have finished, the others are asked to stop as soon as they have
        `fraction_samples` of their rollout. What `collect_async`, or a call that raised, has left
        pending comes first.

        Returns:
            Data: see `CWorker.collect_data`; `instance` counts through the instances of all
            workers, also in the rows of `levels`. And info: NumberSamples, Episodes, Returns,
            Lengths, Successes, Time, ActorVersion (the oldest), PolicyLag (the largest number of
            versions between a sample and the latest weights), DecisionLag (the same of the
            levels' rows, whose decisions may be held over rollouts), Workers (the info of each),
            Restarts.
        """
        self._check_running()
        if self.num_workers == 0:
            return self._joined([self._local_rollout()])
        self._check_weights()
        self.drain()
        self._n_gathers += 1
        word = f"stop-{self._n_gathers}"
        for i in self._pool.actors:
            self._launch(i, word)
        told = False
        while self._flying:
            self._receive(list(self._flying), word)
            if not told and 2 * len(self._flying) <= self.num_workers:
                told = True
                for index, _, _ in self._flying.values():
                    self._pool.call(index, "tell", word)
        return self._take_arrived()

    def _take_arrived(self) -> tuple[dict[str, Any], dict[str, Any]]:
        parts, self._arrived = self._arrived, []
        return self._joined(parts)

    def collect_async(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Join the rollouts that have arrived, at least one; their workers continue at once.

        With `max_lag`, it waits for rollouts that would otherwise exceed that lag.
        """
        self._check_running()
        if self.num_workers == 0:
            return self._joined([self._local_rollout()])
        self._check_weights()
        self._launch_idle()
        if not self._arrived:
            self._receive(list(self._flying))
        if self.max_lag is not None:  # those that could not wait for the next weights
            oldest = self.actor_version - self.max_lag
            while late := [r for r, (_, version, _) in self._flying.items() if version <= oldest]:
                self._receive(late)
        self._launch_idle()
        return self._take_arrived()

    def _launch_idle(self) -> None:
        busy = {index for index, _, _ in self._flying.values()}
        for i in self._pool.actors:
            if i not in busy:
                self._launch(i)

    def drain(self) -> None:
        """Wait for what `collect_async` has begun; the next gather has it."""
        while self._flying:
            self._receive(list(self._flying))

    def _local_rollout(self) -> tuple[Any, dict[str, Any]]:
        worker = self.local_worker()
        try:
            return self._numbered(*worker.collect_data())
        except Exception as error:
            message = f"raised {type(error).__name__}: {error}"
            raise WorkerError(worker.index_worker, message) from error

    def _check_weights(self) -> None:
        """Weights that did not fit are an error, before anything is collected with others."""
        sent, self._set = self._set, []
        for ref, index in sent:
            try:
                self._pool.get(ref, index)
            except WorkerError as error:
                if not error.died:  # a death shows where a rollout is waited for
                    raise

    def _launch(self, index: int, word: str | None = None) -> None:
        ref = self._pool.call(index, "collect_data", [] if word is None else [word])
        self._flying[ref] = (index, self.actor_version, time.monotonic())

    def _receive(self, refs: list[Any], word: str | None = None) -> None:
        """Wait for one of these rollouts, and add all of them that have come to those arrived.

        If one raises, the next gather has what the others returned.
        """
        ready: list[Any] = []
        while not ready:
            ready, _ = self._pool.ray.wait(refs, num_returns=1, timeout=1.0)
            for ref in refs:
                index, _, since = self._flying[ref]
                if self.timeout is not None and not ready:
                    waited = time.monotonic() - since
                    if waited > self.timeout:
                        raise WorkerError(index, f"has not answered for {waited:.0f} s.")
        more, _ = self._pool.ray.wait(refs, num_returns=len(refs), timeout=0)
        failed, n_before = [], len(self._arrived)
        for ref in more or ready:
            index, _, _ = self._flying.pop(ref)
            try:
                self._arrived.append(self._numbered(*self._pool.get(ref, index)))
            except WorkerError as error:
                try:
                    self._restart(index, error)
                    self._launch(index, word)
                except WorkerError as last:
                    failed.append(last)
        if failed:
            for other in failed[1:]:
                failed[0].add_note(f"Beside it, {other}")
            raise failed[0]
        if len(self._arrived) == n_before:  # those that came were started again
            self._receive([r for r in refs if r in self._flying] or [*self._flying])

    def _restart(self, index: int, error: WorkerError) -> None:
        """Start a worker again as often as is allowed; `error` if it is not."""
        while self.restarts.get(index, 0) < self.max_restarts:
            self.restarts[index] = self.restarts.get(index, 0) + 1
            try:
                self._pool.restart(index, self._params(index))
                self._prepare(index)
                return self._pool.ask(index, "end_start")
            except WorkerError as again:
                error = again
        raise error

    def _joined(self, parts: list[tuple[Any, dict[str, Any]]]) -> tuple[dict[str, Any], Any]:
        """Data and info of several rollouts as that of one."""
        parts = sorted(parts, key=lambda part: part[1]["IndexWorker"])
        infos = [info for _, info in parts]
        data, counts = join(parts)
        rows = [rows["actor_version"] for rows in data["levels"] if rows is not None]

        def lag(*versions: np.ndarray) -> int:
            return max((self.actor_version - int(v.min()) for v in versions if len(v)), default=0)

        info = counts | {
            "Time": max(i["Time"] for i in infos),
            "ActorVersion": min(i["ActorVersion"] for i in infos),
            "PolicyLag": lag(data["actor_version"]),
            "DecisionLag": lag(*rows),
            "Workers": infos,
            "Restarts": dict(self.restarts),
        }
        return data, info

    def _numbered(self, data: Any, info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a worker has sent, with instances counted through all workers."""
        data = decompress(data) if isinstance(data, bytes) else data
        offset = sum(n for i, n in self._instances.items() if i < info["IndexWorker"])
        for rows in (data, *data["levels"]):
            if rows is not None:
                rows["instance"] = rows["instance"] + offset
        return data, info

    @property
    def n_env_instances(self) -> int:
        """Instances of all workers that collect."""
        workers = [0] if self._pool is None else self._pool.actors
        return sum(self._instances[i] for i in workers)

    # ------------------------------------------------------------------ changes

    def set_weights(self, actor_weights: dict[str, Any]) -> None:
        """Give all workers other weights; those that collect take them for their next rollout.

        Args:
            actor_weights: see `CWorker.set_weights`.
        """
        self._check_running()
        weights = checked_weights(actor_weights)
        # Earlier ones have arrived by then: calls that follow one another may overtake each other.
        self._check_weights()
        if self._local is not None:
            self._local.set_weights(weights)
        self._weights, self.actor_version = weights, int(weights["ActorVersion"])
        if self._pool is not None:
            ref = self._pool.ray.put(weights)
            self._set += [(self._pool.call(i, "set_weights", ref), i) for i in self._pool.actors]

    def evaluate(self) -> float:
        """Mean return over exactly `num_test_episodes` episodes of each worker.

        Waits for pending rollouts; the next gather has them.
        """
        self._check_running()
        self._check_weights()
        self.drain()
        if self._pool is None:
            return self.local_worker().evaluate()
        returns, failed = self._ask_all("evaluate")
        for i, error in failed.items():
            if not error.died:
                raise error
            self._restart(i, error)
            returns[i] = self._pool.ask(i, "evaluate")
        return float(np.mean(list(returns.values())))

    def _ask_all(self, name: str, *arguments: Any) -> tuple[dict[int, Any], dict[int, WorkerError]]:
        """What the remote workers answer, all at the same time, and the errors of the others."""
        answers, failed = {}, {}
        pool: Any = self._pool
        refs = {i: pool.call(i, name, *arguments) for i in (pool.actors if pool else ())}
        for i, ref in refs.items():
            try:
                answers[i] = pool.get(ref, i)
            except WorkerError as error:
                failed[i] = error
        return answers, failed

    def update_algorithm_parameter(self, parameter_name: str, new_parameter_value: Any) -> None:
        """See `CWorker.update_algorithm_parameter`; of all workers."""
        self._change("update_algorithm_parameter", parameter_name, new_parameter_value)

    def update_storage_parameter(self, parameter_name: str, new_parameter_value: Any) -> None:
        """See `CWorker.update_storage_parameter`; of all workers."""
        self._change("update_storage_parameter", parameter_name, new_parameter_value)

    def replace_agent_component(
        self, component_name: str, new_component_factory: Callable[..., Any]
    ) -> None:
        """See `CWorker.replace_agent_component`; of all workers."""
        self._change("replace_agent_component", component_name, new_component_factory)

    def _change(self, name: str, *arguments: Any) -> None:
        self._check_running()
        self._check_weights()
        self.drain()
        component = arguments[0] if name == "replace_agent_component" else None
        if self._arrived and component in ("actor", "envs_train"):
            raise ValueError(
                f"{len(self._arrived)} rollouts of the present {component} have not been gathered: "
                f"call collect() first, which leaves none pending."
            )
        if self._local is not None:
            self._ask(self._local.index_worker, name, *arguments)
        _, failed = self._ask_all(name, *arguments)
        for i in self._instances.keys() - failed.keys():
            self._instances[i] = self._ask(i, "get_attribute", "n_env_instances")
        refused = [error for error in failed.values() if not error.died]
        if not refused:
            self._remember(name, arguments)
            if component == "actor":  # fresh weights, until others are set
                self._weights, self.actor_version = None, 0
        for i, error in failed.items():
            if error.died:
                self._restart(i, error)
        if refused:
            raise refused[0]

    def _remember(self, name: str, arguments: tuple[Any, ...]) -> None:
        """For workers that start later; what a component that is now replaced was given, is not."""
        of = {"algo": "update_algorithm_parameter", "storage": "update_storage_parameter"}
        if name == "replace_agent_component":
            outdated = of.get(arguments[0])
            self._changes = {k: v for k, v in self._changes.items() if k[0] != outdated}
        self._changes.pop((name, arguments[0]), None)
        self._changes[name, arguments[0]] = arguments

    def stop(self) -> None:
        """End all workers, and Ray if this set has started it; can be called twice."""
        if self._stopped:
            return
        self._stopped = True
        try:
            if self._local is not None:
                self._local.stop()
        finally:
            self._flying = {}
            if self._pool is not None:
                self._pool.stop()

    def _check_running(self) -> None:
        if self._stopped:
            raise RuntimeError("the set was stopped: make another one.")

    def __exit__(self, *_: object) -> None:
        self.stop()
