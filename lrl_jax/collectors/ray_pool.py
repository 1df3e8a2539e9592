"""Workers as actors of Ray: room for them, their beginning, what they raise, their end."""

from __future__ import annotations

import concurrent.futures
import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_SCHEDULING_SECONDS = 30.0
_STARTING_SECONDS = 300.0
_STOPPING_SECONDS = 10.0
_RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class WorkerError(RuntimeError):
    """A worker has raised or died.

    Attributes:
        index_worker: of the worker.
        died: whether its process has ended.
    """

    def __init__(self, index_worker: int, message: str, died: bool = False):
        super().__init__(f"worker {index_worker} {message}")
        self.index_worker, self.died = index_worker, died


class RayPool:
    """Actors of one class, each known by its index.

    Args:
        actor_class: what the actors are.
        config: what Ray gives each; see `checked_config`.
        address: of a cluster to join; None for the one this process is connected to, or a new one
            on this machine, which `stop` ends.
        timeout: seconds after which an answer that has not come is an error; None for never.

    Attributes:
        actors: Ray's handles, by index.
        ray: the module.

    Raises:
        ImportError: without Ray.
        ValueError: for another address than the one this process is connected to.
    """

    def __init__(
        self,
        actor_class: type,
        config: dict[str, Any],
        address: str | None = None,
        timeout: float | None = None,
    ):
        self.ray, self._class, self._config = _import_ray(), actor_class, config
        self.timeout = timeout
        self.actors: dict[int, Any] = {}
        self._places: dict[int, tuple[Any, int]] = {}  # placement group and bundle of each
        self._owns_ray = not self.ray.is_initialized()
        if self._owns_ray:
            with warnings.catch_warnings():  # it forks to start other programs, not to go on
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                more = {} if address else {"include_dashboard": False}
                self.ray.init(address=address, log_to_driver=False, **more)
        elif address not in (None, "auto", there := self.ray.get_runtime_context().gcs_address):
            raise ValueError(
                f"address={address!r}, but this process is connected to {there}: leave address "
                f"out, or call ray.shutdown() first."
            )

    def add(self, indices: Iterable[int], params: Callable[[int], dict[str, Any]]) -> None:
        """Start actors with the keyword arguments `params(index)`; none is left if one fails.

        Raises:
            ValueError: for resources that the cluster does not have, or others hold.
            WorkerError: for an actor that cannot begin.
        """
        indices = list(indices)
        group = self._reserve(len(indices))
        try:
            for bundle, i in enumerate(indices):
                self._places[i] = (group, bundle)
                self._start(i, params(i))
            self._await(indices)
        except BaseException:
            self.remove(indices)
            raise

    def remove(self, indices: Iterable[int]) -> None:
        """End actors at once, and give up the room of groups that have none left."""
        from ray.util import remove_placement_group

        groups = []
        for i in list(indices):
            if i in self.actors:
                self.ray.kill(self.actors.pop(i))
            if i in self._places:
                groups.append(self._places.pop(i)[0])
        kept = {id(group) for group, _ in self._places.values()}
        for group in {id(group): group for group in groups if id(group) not in kept}.values():
            remove_placement_group(group)

    def restart(self, index: int, params: dict[str, Any]) -> None:
        """Start an actor again in its place."""
        self.ray.kill(self.actors[index])
        self._start(index, params)
        self._await([index])

    def _reserve(self, n: int) -> Any:
        """Room for n actors."""
        from ray.util import placement_group, remove_placement_group

        each = {_RESOURCES[k]: v for k, v in self._config.items() if k in _RESOURCES and v}
        each |= self._config.get("resources") or {}
        total = self.ray.cluster_resources()
        for name, amount in each.items():
            there = total.get(name, 0.0)
            if amount * n > there:
                raise ValueError(
                    f"{n} workers with {amount:g} {name} each need {amount * n:g}, but the cluster "
                    f"has {there:g} ({_shown(total)}): change worker_remote_config or num_workers."
                )
        group = placement_group([each or {"CPU": 0.001}] * n)
        if not group.wait(_SCHEDULING_SECONDS):
            remove_placement_group(group)
            free = self.ray.available_resources()
            raise ValueError(
                f"{n} workers could not be scheduled within {_SCHEDULING_SECONDS:g} s: each asks "
                f"for {each}, free are {_shown(free)} of {_shown(total)}. Ask for less, for fewer "
                f"workers, or stop others first."
            )
        return group

    def _start(self, index: int, params: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        config = dict(self._config)
        if not config.get("num_gpus"):
            config["runtime_env"] = {"env_vars": {"JAX_PLATFORMS": "cpu"}}
        elif config["num_gpus"] < 1:  # others compute on the same one
            config["runtime_env"] = {"env_vars": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}}
        place = PlacementGroupSchedulingStrategy(*self._places[index])
        # Ray's own threads hear: one waits for the thread that works, one is free meanwhile.
        remote = self.ray.remote(max_concurrency=2, scheduling_strategy=place, **config)
        self.actors[index] = remote(in_one_thread(self._class)).remote(index, **params)

    def _await(self, indices: Iterable[int]) -> None:
        """Wait for actors to be made; errors surface here."""
        begun = {self.actors[i].process_id.remote(): i for i in indices}
        waiting, deadline = list(begun), time.monotonic() + _STARTING_SECONDS
        while waiting:
            ready, waiting = self.ray.wait(waiting, num_returns=1, timeout=1.0)
            for ref in ready:
                self.get(ref, begun[ref])
            if time.monotonic() > deadline and waiting:
                late = begun[waiting[0]]
                raise WorkerError(late, f"has not begun after {_STARTING_SECONDS:g} s.")

    def call(self, index: int, method: str, *arguments: Any) -> Any:
        """Call a method of an actor; returns Ray's reference to what comes back."""
        return getattr(self.actors[index], method).remote(*arguments)

    def ask(self, index: int, method: str, *arguments: Any) -> Any:
        """Call a method of an actor and wait for what comes back."""
        return self.get(self.call(index, method, *arguments), index)

    def get(self, ref: Any, index: int) -> Any:
        """A result of a worker; what it raised, its death, or its silence is a WorkerError."""
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return self.ray.get(ref, timeout=self.timeout)
        except GetTimeoutError as error:
            raise WorkerError(index, f"has not answered for {self.timeout:g} s.") from error
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            raise WorkerError(index, f"raised {type(cause).__name__}: {cause}") from error
        except RayError as error:
            raise WorkerError(index, f"died: {error}", died=True) from error

    def stop(self) -> None:
        """End all actors, and Ray if this pool has started it."""
        try:
            if self.actors and self.ray.is_initialized():
                try:
                    ending = [self.call(i, "stop") for i in self.actors]
                    self.ray.wait(ending, num_returns=len(ending), timeout=_STOPPING_SECONDS)
                finally:
                    self.remove(self.actors)
        finally:
            self.actors = {}
            if self._owns_ray:
                self.ray.shutdown()


#: Methods of workers that are answered while they work; no environment takes part in them.
_HEARD = ("tell", "set_weights", "get_attribute", "process_id")


def in_one_thread(cls: type) -> type:
    """A class whose objects are made, and work, in one thread, whatever threads call them.

    Environments may render or hold what only the thread can use that has made them.

    Args:
        cls: class of the workers; its public methods are called by the same names.
    """

    class InOneThread:
        def __init__(self, *args: Any, **kwargs: Any):
            self._thread = concurrent.futures.ThreadPoolExecutor(1)
            self._worker = self._thread.submit(cls, *args, **kwargs).result()

    InOneThread.__name__ = InOneThread.__qualname__ = cls.__name__  # in Ray's messages

    def passed_on(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            function = getattr(self._worker, name)
            if name in _HEARD:
                return function(*args, **kwargs)
            return self._thread.submit(function, *args, **kwargs).result()

        return method

    for name, _ in inspect.getmembers(cls, callable):
        if not name.startswith("_"):
            setattr(InOneThread, name, passed_on(name))
    return InOneThread


def fetched(x: Any) -> Any:
    """What a reference of Ray's stands for; anything else unchanged."""
    return _import_ray().get(x) if type(x).__module__.partition(".")[0] == "ray" else x


def checked_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Resources of a worker.

    Raises:
        ValueError: for those that Ray does not give to a worker, or numbers below 0.
    """
    config = {"num_cpus": 1, **(config or {})}
    if "object_store_memory" in config:
        raise ValueError(
            "worker_remote_config has object_store_memory, but Ray's workers share one store: call "
            "ray.init(object_store_memory=...) first, and leave it out here."
        )
    known = {*_RESOURCES, "resources"}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"worker_remote_config has {unknown}: it knows {sorted(known)}.")
    for name in _RESOURCES:
        if name in config and (isinstance(config[name], bool) or not config[name] >= 0):
            raise ValueError(f"worker_remote_config[{name!r}]={config[name]!r} must be at least 0.")
    return config


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources[x]:g} {x}" for x in ("CPU", "GPU") if x in resources)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "remote workers need Ray: pip install 'lrl_jax[distributed]', or use num_workers=0."
        ) from error
    return ray
