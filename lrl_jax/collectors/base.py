"""Base of all collectors: a hierarchy, an engine of environments, a buffer, totals."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax

from lrl_jax import buffers, checkpoints, interrupts
from lrl_jax.buffers import Buffer
from lrl_jax.collectors import store
from lrl_jax.collectors.device_engine import DeviceEngine
from lrl_jax.collectors.host_engine import HostEngine
from lrl_jax.collectors.level_writers import LevelWriters
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.collectors.requests import Request, carry_out
from lrl_jax.collectors.stats import Collected, CollectStats
from lrl_jax.collectors.tick import is_traced
from lrl_jax.envs.gymnasium_adapter import HostEnv, is_gymnasium
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checkpoint, checks
from lrl_jax.settings import check_flag

Engine = DeviceEngine | HostEngine


def make_engine(
    hierarchy: Hierarchy, env: Any, env_params: Any, n: int, preprocess: Preprocess | None = None
) -> Engine:
    """The engine of an environment that was checked; `n` is for gymnax's."""
    if not is_gymnasium(env):
        return DeviceEngine(env, env_params, n, preprocess)
    source = HostEnv(env, hierarchy.env_spec.obs_space.dtype)
    return HostEngine(hierarchy, env, source, preprocess)


def checked_hierarchy(hierarchy: Any) -> Hierarchy:
    """Refuse anything but a Hierarchy."""
    if not isinstance(hierarchy, Hierarchy):
        raise TypeError(f"hierarchy must be a Hierarchy, got {type(hierarchy).__name__}.")
    return hierarchy


def warn_of_open(collected: Collected, stacklevel: int = 4) -> None:
    """Warn if episodes were still open when a limit was reached."""
    if collected.n_open:
        warnings.warn(
            f"{collected.n_open} episodes were still open after {collected.n_ticks} steps of each "
            f"instance: they are not counted. Raise max_steps, or give the environment a time "
            f"limit.",
            stacklevel=stacklevel,
        )


#: Of the checkpoints of collectors, and the numbers in them.
_KIND = "collector"
_NAN = ("raise", "drop", "allow")
_COUNTS = ("collect_step", "collect_episode", "collect_time", "_n_env_steps")


class BaseCollector:
    """Collects with an engine; subclasses make the engine and define what can be collected.

    Args:
        hierarchy: acts; in train mode it explores, stores and learns.
        engine: of the environments.
        buffer: size of a replay buffer, or one to continue, or None.
        exploration_noise: whether levels add their training noise also where nothing is learned.
        state: HierarchyState to start from; a new one if None.
        nan: what happens to steps that are not finite: "raise", "drop" or "allow".

    Attributes:
        state: the HierarchyState, readable and settable.
        buffer: the replay buffer (see `lrl_jax.buffers.stored`), or None.
        collect_step, collect_episode, collect_time: environment steps, finished episodes and
            seconds of all calls since the last `reset_stat`.
    """

    device: Any = None

    def __init__(
        self,
        hierarchy: Hierarchy,
        engine: Engine,
        buffer: int | Buffer | None,
        exploration_noise: bool,
        state: HierarchyState | None,
        nan: str,
    ):
        if nan not in _NAN:
            raise ValueError(f"nan={nan!r} is unknown: use one of {list(_NAN)}.")
        self.nan = nan
        self.hierarchy, self._engine = hierarchy, engine
        self.n_env_instances, self.preprocess = engine.n, engine.preprocess
        self.exploration_noise = check_flag("exploration_noise", exploration_noise)
        self.buffer = buffer
        self._initial_state = None if state is None else checks.state_of(state, engine.n)
        self._is_reset = False
        # Those that the state has counted, and those taken since then.
        self._n_env_steps = 0
        self._n_learn_calls: dict[int, int] = {}  # of levels with their own writers
        self.reset_stat()

    def __repr__(self) -> str:
        counts = f"{self.collect_step:,} steps and {self.collect_episode:,} episodes collected"
        n = self.n_env_instances
        return f"<{type(self).__name__} of {n} instances, {self.hierarchy!r}, {counts}>"

    def reset(
        self,
        seed: int | None = None,
        *,
        reset_buffer: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Start a run: reset the environments, return the hierarchy to level 0, restart the counts.

        Args:
            seed: of all random streams, those of the decisions included. None continues the
                current streams (at first those of the state given, 0 without one), so that
                environments start elsewhere each time. Learners and the levels' stored rows are
                kept; with none yet they are initialised.
            reset_buffer: whether the collector's own buffer is emptied.
            gym_reset_kwargs: further arguments of a Gymnasium environment's reset.
        """
        if isinstance(seed, bool):
            raise TypeError(f"seed, the first argument, is {seed}: use reset_buffer={seed}.")
        if seed is not None:
            seed = checks.seed_of("seed", seed)
        self._check_open()
        with interrupts.held():
            state = self._engine.state() if self._is_reset else self._initial_state
            self._engine.reset(self.hierarchy, state, seed, gym_reset_kwargs)
            self._is_reset, self._n_env_steps = True, self._engine.n_env_steps
            self._to_device()
        self.reset_stat()
        if reset_buffer:
            self.reset_buffer(keep_statistics=True)

    def _to_device(self) -> None:
        if self.device is not None:
            state = jax.device_put(self._engine.state(), self.device)
            self._engine.set_state(self.hierarchy, state)

    def save(self, path: str | Path) -> None:
        """Write everything that collecting continues from to the folder `path`; see `load`.

        An older checkpoint there is replaced once the new one is whole.
        """
        engine = self._ready()
        buffer, store = engine.state().levels[-1].buffer, engine.store
        meta = {
            "environments": type(engine).__name__,
            "settings": checkpoint.settings_of(self.hierarchy),
            "n_env_instances": engine.n,
            "is_aligned": buffer is not None and buffer.aligned,
            "rows": None if store is None else store.capacity * engine.n,
            "counts": {name: getattr(self, name) for name in _COUNTS},
        }
        checkpoints.write(path, engine.saved(), meta, kind=_KIND)

    @classmethod
    def load(cls, path: str | Path, hierarchy: Hierarchy, env: Any = None, **settings: Any) -> Self:
        """A collector that continues where a saved one stopped.

        To the bit in JAX environments: environments and open episodes continue, too.
        Gymnasium's, which cannot be saved, begin fresh episodes; random streams continue.

        Args:
            path: folder that was written.
            hierarchy: with the settings of the one that was saved.
            env: as for a new collector.
            **settings: further arguments of a new collector, except the number of instances, the
                state and the buffer, which were saved.

        Raises:
            FileNotFoundError: if there is no checkpoint at `path`.
            ValueError, TypeError: if it is damaged, or of another hierarchy, or does not fit the
                environment.
        """
        meta = checkpoints.read_meta(path, kind=_KIND)
        checkpoint.refuse_other_settings(checked_hierarchy(hierarchy), meta["settings"], path)
        given = sorted({"state", "buffer", "n_env_instances"} & set(settings))
        if given:
            raise TypeError(f"{given} are those of the checkpoint at {path}: leave them out.")
        env = hierarchy.env if env is None else env
        sizes = cls._sizes(env, meta["n_env_instances"]) | {"buffer": meta["rows"]}
        collector = cls(hierarchy, env, **sizes, **settings)
        try:
            collector._restore(path, meta)
        except BaseException:
            collector.close()
            raise
        return collector

    @classmethod
    def _sizes(cls, env: Any, n: int) -> dict[str, Any]:
        """The argument with the number of instances, for environments without their own."""
        return {}

    def _restore(self, path: str | Path, meta: dict[str, Any]) -> None:
        engine, n = self._engine, meta["n_env_instances"]
        if type(engine).__name__ != meta["environments"] or engine.n != n:
            raise ValueError(
                f"the checkpoint at {path} is of a {meta['environments']} with {n} instances, but "
                f"the environment here needs a {type(engine).__name__} with {engine.n}."
            )
        with interrupts.held():
            read = functools.partial(checkpoints.read, path, kind=_KIND)
            engine.restore(self.hierarchy, read, meta["is_aligned"])
            self._is_reset = True
            self._to_device()
        for name in _COUNTS:
            setattr(self, name, meta["counts"][name])

    def close(self) -> None:
        """Close what the collector has opened: nothing, where the environment was given."""

    def reset_env(self, gym_reset_kwargs: dict[str, Any] | None = None) -> None:
        """Reset all environments in mid-episode: returns, lengths and trajectories restart.

        Waits for pending steps and forgets them.
        """
        with interrupts.held():
            engine = self._ready()
            engine.reset(self.hierarchy, engine.state(), None, gym_reset_kwargs)

    def reset_buffer(self, keep_statistics: bool = False) -> None:
        """Empty the collector's own buffer; the levels' are theirs.

        Args:
            keep_statistics: whether the totals of steps, episodes and time are kept.
        """
        if self._engine.store is not None:
            self._engine.store = buffers.cut(buffers.clear(self._engine.store))
        if not keep_statistics:
            self.reset_stat()

    def reset_stat(self) -> None:
        """Set the totals of steps, episodes and time to zero; open episodes continue."""
        self.collect_step, self.collect_episode, self.collect_time = 0, 0, 0.0

    def settle(self) -> None:
        """Make resets that are due, of instances that sat out or after an error, now."""
        with interrupts.held():
            self._ready().settle(self.hierarchy)

    @property
    def state(self) -> HierarchyState:
        """State of the hierarchy. Stays valid when the collector continues."""
        return self._ready().state()

    @state.setter
    def state(self, state: HierarchyState) -> None:
        checks.state_of(state, self.n_env_instances)
        if not self._is_reset and not is_traced(state):  # the environments' streams are its own
            self._initial_state = state
        self._ready().set_state(self.hierarchy, state)
        self._n_env_steps = self._engine.n_env_steps

    @property
    def buffer(self) -> Buffer | None:
        """Replay buffer of environment transitions. Stays valid when the collector continues."""
        return jax.tree.map(jax.numpy.copy, self._engine.store)

    @buffer.setter
    def buffer(self, buffer: int | Buffer | None) -> None:
        if buffer is not None:
            buffer = store.create(self.hierarchy, self.n_env_instances, buffer)
        self._engine.store = buffer

    def _check_open(self) -> None:
        """Raise if the collector was closed: one that does not close its environments never is."""

    def _ready(self, reset_kwargs: dict[str, Any] | None = None) -> Engine:
        """The engine, after a reset: a call that makes the first gives it those of the call."""
        if not self._is_reset:
            self.reset(reset_buffer=False, gym_reset_kwargs=reset_kwargs)
        return self._engine

    def _numbered(self, request: Request) -> Request:
        """The request with ticks numbered from those taken so far."""
        self._ready(request.gym_reset_kwargs)
        return request.numbered_from(-(-self._n_env_steps // self.n_env_instances))

    def _acting(self, learn: bool) -> Hierarchy:
        """The hierarchy in the mode that a call is in."""
        return self.hierarchy if learn or self.exploration_noise else self.hierarchy.eval()

    def _collect(
        self,
        request: Request,
        collected: Collected,
        after: Callable[[int], None] | None = None,
    ) -> CollectStats:
        """Carry out a request, and count what it brought, also if an exception ends it."""
        self._check_open()
        writers = LevelWriters(self.hierarchy, self._n_learn_calls, self._n_env_steps)

        def after_chunk(t: int, is_due: bool) -> None:
            writers.write(collected)
            if after is not None and is_due:
                after(t)

        with interrupts.held():
            engine = self._ready(request.gym_reset_kwargs)
            acting = self._acting(request.way.learn)
            try:
                carry_out(request, acting, engine, collected, after_chunk)
            finally:
                stats = collected.stats()
                self._n_env_steps += stats.n_collected_steps
                self.collect_step += stats.n_collected_steps
                self.collect_episode += stats.n_collected_episodes
                self.collect_time += stats.collect_time
        warn_of_open(collected)
        return stats

    @staticmethod
    def _returned(request: Request, collected: Collected, stats: CollectStats) -> Any:
        """What collect returns: the statistics, and what was to be recorded."""
        return (stats, *collected.recorded) if request.way.record else stats
