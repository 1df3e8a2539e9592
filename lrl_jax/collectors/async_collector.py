"""AsyncCollector: steps the environments that are ready and does not wait for the slowest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, overload

from lrl_jax.buffers import Buffer
from lrl_jax.collectors.base import BaseCollector, checked_hierarchy
from lrl_jax.collectors.host_engine import HostEngine
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.collectors.records import Transitions
from lrl_jax.collectors.requests import Request
from lrl_jax.collectors.sources import make_source
from lrl_jax.collectors.stats import CollectStats
from lrl_jax.collectors.tick import check_env
from lrl_jax.devices import resolve_device
from lrl_jax.hierarchies import Hierarchy, HierarchyState
from lrl_jax.old_names import answers
from lrl_jax.settings import check_float, check_int

_LIST = "the list of functions says how many instances and what they are"
_TESTS = "only Collector tests: make one in a test environment, with state=collector.state"
_SAVES = "only Collector saves on the way: call save(path) between calls of collect"


class AsyncCollector(BaseCollector, contextlib.AbstractContextManager):
    """Collects from environments that step independently; does not wait for the slowest.

    Args:
        hierarchy: acts; built for one of the environments.
        env: a list of functions that make one Gymnasium environment each (one thread each), or an
            envpool environment (extra "envpool").
        wait_num: number of finished steps to wait for before those instances decide again; all if
            None. envpool has its own `batch_size` for this.
        timeout: seconds after which one step is enough; None for never.
        buffer: size of a replay buffer of environment transitions, or such a buffer to continue;
            None for none.
        preprocess_fn, exploration_noise: see `Collector`.
        state: HierarchyState to start from, with one instance per environment; a new one if None.
        processes: whether each environment of a list runs in a separate process, for
            environments that are busy in Python.
        nan, device: see `Collector`. Its other arguments are refused by name, with the reason.

    Attributes:
        state: the HierarchyState, readable and settable.
        buffer: the replay buffer, or None.
        collect_step, collect_episode, collect_time: totals since the last `reset_stat`.
    """

    @answers(
        policy="use hierarchy=",
        test_env=_TESTS,
        test_env_params=_TESTS,
        writer="only Collector writes scalars: write what the statistics say",
        checkpoint_dir=_SAVES,
        checkpoint_interval=_SAVES,
        max_to_keep=_SAVES,
        env_params="they are for gymnax environments, which step together: use Collector",
        n_env_instances=_LIST,
    )
    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any,
        *,
        wait_num: int | None = None,
        timeout: float | None = None,
        buffer: int | Buffer | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        exploration_noise: bool = False,
        state: HierarchyState | None = None,
        processes: bool = False,
        nan: str = "raise",
        device: Any = None,
    ):
        dtype = checked_hierarchy(hierarchy).env_spec.obs_space.dtype
        self.device = resolve_device(device) if device is not None else hierarchy.device
        if wait_num is not None:
            wait_num = check_int("wait_num", wait_num, 1)
        if timeout is not None:
            timeout = check_float("timeout", timeout, 0.0, above=True)
        preprocess = None if preprocess_fn is None else Preprocess(preprocess_fn)
        self._source = make_source(env, dtype, processes, wait_num, timeout)
        self._closed = False
        try:
            check_env(hierarchy, self._source.spec_env, None)
            engine = HostEngine(hierarchy, env, self._source, preprocess)
            super().__init__(hierarchy, engine, buffer, exploration_noise, state, nan)
        except BaseException:
            self._source.close()
            raise
        self.wait_num, self.timeout = wait_num or self.n_env_instances, timeout

    def close(self) -> None:
        """Wait for pending steps and close the environments."""
        if not self._closed:
            self._closed = True
            self._source.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the collector was closed: make another one.")

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def collect(
        self,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        *,
        learn: bool = False,
        record_transitions: Literal[False] = False,
        max_steps: int | None = None,
    ) -> CollectStats: ...

    @overload
    def collect(
        self,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        *,
        learn: bool = False,
        record_transitions: Literal[True],
        max_steps: int | None = None,
    ) -> tuple[CollectStats, Transitions]: ...

    @answers(n_step="use n_total_steps=", n_episode="use n_episodes=")
    def collect(
        self,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        *,
        learn: bool = False,
        record_transitions: bool = False,
        max_steps: int | None = None,
    ) -> Any:
        """Collect at least a number of steps, or an exact number of episodes; give one of the two.

        Steps are counted when they are received; several may arrive at once, so that more than
        `n_total_steps` may be collected: `stats.n_steps_beyond` says how many more. Steps still
        pending at the end are received by the next call. Episodes are counted as in `Collector`.

        Args:
            n_total_steps: number of steps, summed over instances.
            n_episodes: number of episodes, summed over instances.
            random: act uniformly at random; the hierarchy neither sees nor stores anything.
            render: seconds between frames of the first environment, which shows them as its
                `render_mode` says, in its own thread; None for no display. Not for envpool.
            no_grad: only its default has a meaning here.
            gym_reset_kwargs: `options` of the resets on the way.
            learn: make the updates owed after each batch of steps received.
            record_transitions: also return the transitions, leaves [batches, n, ...].
            max_steps: batches after which a call that counts episodes gives up.

        Returns:
            CollectStats, or (CollectStats, Transitions).
        """
        if not no_grad:
            raise ValueError("no_grad=False: Gymnasium environments have no gradients.")
        if render is not None:
            check_float("render, the seconds between frames,", render, 0.0)
        if record_transitions == "levels":
            raise ValueError(
                'record_transitions="levels": steps are still pending at the end of a call, so '
                "that what levels did is not whole: use Collector."
            )
        request = Request.checked(
            self.hierarchy,
            self.n_env_instances,
            {"n_total_steps": n_total_steps, "n_episodes": n_episodes},
            max_steps=max_steps,
            learn=learn,
            nan=self.nan,
            record=record_transitions,
            random=random,
            or_more=True,
            gym_reset_kwargs=gym_reset_kwargs,
        )
        collected = request.begun(self.n_env_instances)
        self._source.shown_for(render)
        try:
            stats = self._collect(request, collected)
        finally:
            self._source.shown_for(None)
        return self._returned(request, collected, stats)
