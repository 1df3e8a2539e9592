"""Collector: the host loop that collects experience, counts it, and lets the hierarchy learn."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import jax

from lrl_jax import checkpoints, interrupts
from lrl_jax.buffers import Buffer
from lrl_jax.collectors.base import BaseCollector, checked_hierarchy, make_engine, warn_of_open
from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.evaluation import run_test
from lrl_jax.collectors.preprocess import Preprocess
from lrl_jax.collectors.records import LevelTransitions, Transitions
from lrl_jax.collectors.requests import Request, Way, due
from lrl_jax.collectors.stats import ALIASES, Collected, CollectStats, with_aliases
from lrl_jax.collectors.tick import own_env
from lrl_jax.collectors.video import VideoLogger
from lrl_jax.devices import resolve_device
from lrl_jax.envs.gymnasium_adapter import is_gymnasium
from lrl_jax.hierarchies import Hierarchy, HierarchyState, checks
from lrl_jax.loggers import check_writer, write_scalars
from lrl_jax.old_names import answers
from lrl_jax.randomness import Salt
from lrl_jax.settings import check_flag, check_int


class CollectOptions(TypedDict, total=False):
    """Further arguments of `Collector.collect`, as type checkers know them."""

    learn: bool
    n_steps_start: int | None
    log_interval: int
    test_interval: int | None
    n_test_steps: int
    verbose: bool
    post_step_callback: Callable[[int, Any], Any] | None
    video_logger: VideoLogger | None
    n_total_steps: int | None
    n_episodes: int | None
    random: bool
    render: float | None
    no_grad: bool
    gym_reset_kwargs: dict[str, Any] | None
    episode_allocation: Literal["any", "quota"]
    max_steps: int | None


class Collector(BaseCollector):
    """Collects experience with a hierarchy; learns, tests, logs and saves along the way.

    Args:
        hierarchy: acts; in train mode it explores, stores and learns.
        env: environment to collect in: gymnax's, or Gymnasium's, single or vector; the
            hierarchy's if None.
        test_env: environment to test in, `env` if None.
        device: where the state is put; the hierarchy's or the default device if None.
        writer: a logger (see `lrl_jax.loggers`), or a TensorBoard writer (anything with
            add_scalar(name, value, step)); the hierarchy's if None.
        checkpoint_dir: folder of checkpoints; None for none.
        checkpoint_interval: ticks between checkpoints; None for one at the end only.
        env_params: parameters of a gymnax `env`; the hierarchy's if None, or the defaults of an
            `env` that is not the hierarchy's.
        test_env_params: parameters of a gymnax test environment; if None those of `env` where it
            is the same, else the hierarchy's or its own defaults.
        n_env_instances: number of instances, n; a Gymnasium environment has its own.
        state: HierarchyState of n instances to start from; a new one if None.
        buffer: size of a replay buffer of environment transitions, in addition to the levels'
            own, that every call of `collect` fills; or such a buffer to continue; None for none.
        preprocess_fn: sees all data of the environment first; levels act on, store and count what
            it returns. Called with keywords, arrays with a leading axis of instances:
            `obs` and `env_id` at a reset; `obs_next`, `rew`, `terminated`, `truncated`, `done`,
            `info`, `act` and `env_id` at a step. It returns a dict of what it changes. It is traced
            in gymnax environments, and gets NumPy arrays in Gymnasium's.
        exploration_noise: whether levels add their training noise also where nothing is learned.
        max_to_keep: checkpoints to keep, the last of those that this collector wrote; None for
            all.
        nan: what happens where a reward, an observation or a signal is NaN or infinite. "raise":
            `collect` raises a FloatingPointError with the instance and the tick, and so it does
            where a metric of an update is. "drop": such steps are counted in `stats.n_nonfinite`.
            In both cases the step is dropped and its instance reset, no such number is acted on or
            stored, and the collector can be used further. "allow": no check.

    Attributes:
        state: the HierarchyState, readable and settable.
        buffer: the replay buffer (see `lrl_jax.buffers.stored`), or None.
        collect_step, collect_episode, collect_time: environment steps, finished episodes and
            seconds of all calls since the last `reset_stat`.
    """

    @answers(policy="use hierarchy=")
    def __init__(
        self,
        hierarchy: Hierarchy,
        env: Any = None,
        test_env: Any = None,
        device: Any = None,
        writer: Any = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: int | None = None,
        *,
        env_params: Any = None,
        test_env_params: Any = None,
        n_env_instances: int | None = None,
        state: HierarchyState | None = None,
        buffer: int | Buffer | None = None,
        preprocess_fn: Callable[..., Any] | None = None,
        exploration_noise: bool = False,
        max_to_keep: int | None = None,
        nan: str = "raise",
    ):
        checked_hierarchy(hierarchy)
        preprocess = None if preprocess_fn is None else Preprocess(preprocess_fn)
        self.writer = writer if writer is not None else hierarchy.writer
        self.device = resolve_device(device) if device is not None else hierarchy.device
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        if checkpoint_interval is not None:
            checkpoint_interval = check_int("checkpoint_interval", checkpoint_interval, 1)
        self.checkpoint_interval = checkpoint_interval
        if max_to_keep is not None:
            max_to_keep = check_int("max_to_keep", max_to_keep, 1)
        self.max_to_keep, self._kept = max_to_keep, []
        if self.writer is not None:
            check_writer(self.writer)
        if test_env is not None and not callable(getattr(test_env, "step", None)):
            raise TypeError(
                f"test_env has no method step: {test_env!r}. A replay buffer is given by name, "
                f"buffer=."
            )
        if state is not None:
            checks.state_of(state)
        self.env, self.env_params = own_env(hierarchy, env, env_params)
        self.test_env = self.env if test_env is None else test_env
        if self.test_env is self.env and test_env_params is None:
            test_env_params = self.env_params
        _, self.test_env_params = own_env(hierarchy, self.test_env, test_env_params)
        n = self._instances(n_env_instances, state)
        engine = make_engine(hierarchy, self.env, self.env_params, n, preprocess)
        super().__init__(hierarchy, engine, buffer, exploration_noise, state, nan)

    @classmethod
    def _sizes(cls, env: Any, n: int) -> dict[str, Any]:
        return {} if is_gymnasium(env) else {"n_env_instances": n}

    def _instances(self, n: Any, state: HierarchyState | None) -> int:
        """Number of instances; a Gymnasium environment has its own."""
        own = getattr(self.env, "num_envs", 1) if is_gymnasium(self.env) else None
        if n is None:
            n = own or (1 if state is None else state.n_env_instances)
        n = check_int("n_env_instances", n, 1)
        if own is not None and n != own:
            raise ValueError(
                f"the environment has {own} instances, but n_env_instances={n}: leave it out."
            )
        return n

    # -------------------------------------------------------------- collecting

    @overload
    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = True,
        record_transitions: Literal[False] = False,
        **options: Unpack[CollectOptions],
    ) -> CollectStats: ...

    @overload
    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = True,
        *,
        record_transitions: Literal[True],
        **options: Unpack[CollectOptions],
    ) -> tuple[CollectStats, Transitions]: ...

    @overload
    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = True,
        *,
        record_transitions: Literal["levels"],
        **options: Unpack[CollectOptions],
    ) -> tuple[CollectStats, Transitions, tuple[LevelTransitions, ...]]: ...

    @overload
    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = True,
        record_transitions: bool | str = False,
        **options: Unpack[CollectOptions],
    ) -> Any: ...

    @answers(
        n_step="use n_total_steps= for steps summed over instances, n_steps= for those of each",
        n_episode="use n_episodes=",
    )
    def collect(
        self,
        n_steps: int | None = None,
        env_expects_numpy: bool = True,
        record_transitions: bool | str = False,
        learn: bool = False,
        n_steps_start: int | None = None,
        log_interval: int = 100,
        test_interval: int | None = None,
        n_test_steps: int = 1000,
        verbose: bool = False,
        post_step_callback: Callable[[int, Any], Any] | None = None,
        video_logger: VideoLogger | None = None,
        *,
        n_total_steps: int | None = None,
        n_episodes: int | None = None,
        random: bool = False,
        render: float | None = None,
        no_grad: bool = True,
        gym_reset_kwargs: dict[str, Any] | None = None,
        episode_allocation: str = "any",
        max_steps: int | None = None,
    ) -> Any:
        """Collect an exact number of steps or episodes; give one of the three numbers.

        Intervals count ticks (one step of all instances) and are due after step t if
        t % interval == 0, checkpoints also at the end. Scalars are logged at t * n. Numbering
        continues from the state's count, `n_total_env_steps` over n, plus what was collected
        without counting since the last reset: across calls, and across a restart from a saved
        state.

        With `n_episodes`, exactly that many episodes count, each from its start to its end, so that
        short ones are not favoured. The first min(n_episodes, n) instances continue the episode
        they are in. An instance that finishes starts another one while fewer than `n_episodes` have
        been started, and otherwise pauses.

        Args:
            n_steps: steps of each instance; with `n_steps_start`, including those already taken.
            env_expects_numpy: has no effect: Gymnasium environments get NumPy arrays.
            record_transitions: True also returns the transitions, leaves [ticks, n, ...]; "levels"
                also what each level did.
            learn: make the updates owed after each tick. Without it and without
                `exploration_noise` the hierarchy is in eval mode: levels act without noise, and
                nothing is stored or counted.
            n_steps_start: steps taken in an earlier run that this call continues:
                `n_steps_start=400, n_steps=1000` takes 600 steps, numbered 400 to 999. None: takes
                `n_steps`, numbered as above.
            log_interval: ticks between writing scalars.
            test_interval: ticks between tests; None for none.
            n_test_steps: ticks of a test.
            verbose: show a progress bar, with the mean return and success of the episodes that
                ended last, and of the last test.
            post_step_callback: called with (t, obs_next) after each step; obs_next is the true
                final observation where an episode ended.
            video_logger: gets every frame of instance 0, and its plans in mazes; see VideoLogger.
            n_total_steps: number of steps, summed over instances. In the last tick only as many
                instances step as are needed, the lowest-numbered ones.
            n_episodes: number of episodes, summed over instances.
            random: act uniformly at random; the hierarchy neither sees nor stores anything, and
                starts at level 0 afterwards.
            render: seconds between displayed frames; None for no display.
            no_grad: False lets gradients through, see below.
            gym_reset_kwargs: `options` of resets of single Gymnasium environments within the call.
            episode_allocation: "any": the next free instance takes the next episode; "quota":
                each instance takes n_episodes // n of them or one more, for instances that differ.
            max_steps: ticks after which a call that counts episodes gives up, 1,000,000 if None;
                `stats.truncated_by_limit` is then the number of episodes still open.

        With `no_grad=False` in a gymnax environment, `collect(n_steps, record_transitions=True)`
        can be differentiated with respect to values in `collector.state`: the returned transitions
        carry gradients, as far as environment and levels have them. The collector and its buffer
        do not change. Under jit or vmap the statistics only have the number of steps.

        Returns:
            CollectStats, or (CollectStats, Transitions), or with "levels" (CollectStats,
            Transitions, one LevelTransitions per level).

        Raises:
            ValueError, TypeError: for arguments that exclude each other or are out of range.
        """
        amounts = {"n_steps": n_steps, "n_total_steps": n_total_steps, "n_episodes": n_episodes}
        request = Request.checked(
            self.hierarchy,
            self.n_env_instances,
            amounts,
            n_steps_start=0 if n_steps_start is None else n_steps_start,
            episode_allocation=episode_allocation,
            max_steps=max_steps,
            learn=learn,
            nan=self.nan,
            record=record_transitions,
            random=random,
            log_interval=log_interval,
            test_interval=test_interval,
            checkpoint_interval=self.checkpoint_interval if self.checkpoint_dir else None,
            n_test_steps=n_test_steps,
            verbose=verbose,
            post_step_callback=post_step_callback,
            video_logger=video_logger,
            render=render,
            gym_reset_kwargs=gym_reset_kwargs,
        )
        if self.writer is None:
            request = dataclasses.replace(request, log_interval=None)
        counts_episodes = request.way.mode.startswith("n_episodes")
        if test_interval and self._shares_env and counts_episodes:
            raise ValueError(
                "n_episodes with test_interval: each test resets the environment that episodes are "
                "collected in, and they might never end. Give the collector a test_env."
            )
        check_flag("env_expects_numpy", env_expects_numpy)
        if not check_flag("no_grad", no_grad):
            return self._differentiable(request)
        if n_steps_start is None:
            request = self._numbered(request)
        return self._returned(request, *self._collect_and_test(request))

    def _collect_and_test(self, request: Request) -> tuple[Collected, CollectStats]:
        """Carry out a request, with what is due on the way: scalars, tests, checkpoints."""
        tests: list[tuple[int, dict[str, Any]]] = []
        saved_at = -1

        collected = request.begun(self.n_env_instances)

        def after(t: int) -> None:
            nonlocal saved_at
            if due(request.log_interval, t):
                self._log("collect", collected.recent_stats(), t)
            if due(request.test_interval, t):
                copy = self._acting(request.way.learn).get_copy(self.state)
                result = self.test(t, copy, request.n_test_steps)
                tests.append((t, result))
                collected.show({name: result[name] for name in ("test_return", "test_success")})
            if due(request.checkpoint_interval, t):
                saved_at = t + 1
                self.save_checkpoint(t + 1, request.limit)

        stats = self._collect(request, collected, after)
        t = request.start + collected.n_ticks
        if self.checkpoint_dir is not None and saved_at != t:
            self.save_checkpoint(t, request.limit)
        return collected, dataclasses.replace(stats, tests=tuple(tests))

    def _differentiable(self, request: Request) -> Any:
        way, engine = request.way, self._ready()
        looked_at = request.post_step_callback or request.video_logger or request.render is not None
        others = looked_at or request.test_interval or request.gym_reset_kwargs
        plain = Way(record=True, capacity=way.capacity, checks=way.checks)
        allowed = way == plain and not others
        hierarchy = self._acting(way.learn)
        transitions, record = engine.differentiable(hierarchy, request.amount, allowed)
        if record is None:
            n_steps = request.amount * self.n_env_instances
            return CollectStats(n_collected_steps=n_steps), transitions
        collected = Collected(way.mode, Owed.begin(way.mode, 0, engine.n))
        collected.add(record)
        return collected.stats(), transitions

    def _log(self, about: str, values: Mapping[str, Any], t: int) -> None:
        left_out = {"collect_time", "collect_speed", *ALIASES}
        scalars = {f"{about}/{name}": x for name, x in values.items() if name not in left_out}
        write_scalars(self.writer, t * self.n_env_instances, scalars)

    def save_checkpoint(self, t: int, n_steps: int) -> Path | None:
        """Save all of the state as `step_{t}`, zero-padded to sort; None without a folder."""
        if self.checkpoint_dir is None:
            return None
        path = self.checkpoint_dir / f"step_{t:0{len(str(n_steps))}d}"
        self.hierarchy.save(self._ready().state(), path)
        self._kept = [other for other in self._kept if other != path] + [path]
        while self.max_to_keep is not None and len(self._kept) > self.max_to_keep:
            checkpoints.remove(self._kept.pop(0))
        return path

    # ----------------------------------------------------------------- testing

    def evaluate(
        self,
        n_episodes: int = 64,
        *,
        state: HierarchyState | None = None,
        key: jax.Array | None = None,
        max_steps: int | None = None,
        video_logger: VideoLogger | None = None,
    ) -> CollectStats:
        """Run an exact number of whole episodes in the test environment, in eval mode.

        Each starts from a reset; instances take equal shares, give or take one, so that short
        episodes are not favoured. Training is not affected, except that a Gymnasium environment
        used for both is reset afterwards, see `test`.

        Args:
            n_episodes: number of episodes, summed over instances.
            state: state to evaluate, of any number of instances; the collector's if None. It is
                not changed.
            key: typed random key of the evaluation; from the state's random stream if None, so
                that the same state gives the same episodes.
            max_steps: ticks after which open episodes are dropped, with a warning; 1,000,000 if
                None.
            video_logger: gets every frame of instance 0.

        Returns:
            CollectStats; `stats["return"]`, `stats["success"]`, `stats.returns`.

        Raises:
            ValueError, TypeError: for numbers out of range, or what is not a state.
        """
        state = self.state if state is None else checks.state_of(state)
        n = self._test_instances(state)
        n = n if is_gymnasium(self.test_env) else min(n, check_int("n_episodes", n_episodes, 1))
        request = Request.checked(
            self.hierarchy,
            n,
            {"n_episodes": n_episodes},
            episode_allocation="quota",
            max_steps=max_steps,
            video_logger=video_logger,
        )
        collected = self._tested(request, state, n, key)
        warn_of_open(collected, 3)
        return collected.stats()

    @answers(test_hierarchy="use test_state=, such as hierarchy.get_copy(state)")
    def test(
        self,
        t: int,
        test_state: HierarchyState,
        n_steps: int,
        env_expects_numpy: bool = True,
        video_logger: VideoLogger | None = None,
    ) -> dict[str, Any]:
        """Test from a reset, in eval mode, over the episodes that finish.

        If a Gymnasium `test_env` is the training environment itself, it is reset again
        afterwards: give the collector a separate `test_env`.

        Args:
            t: training step, where scalars are logged (times n).
            test_state: state to test, such as `hierarchy.get_copy(state)`; not changed.
            n_steps: ticks.
            env_expects_numpy: has no effect.
            video_logger: gets every frame of instance 0.

        Returns:
            test_reward (mean per step) and, of the episodes that finished, the mean test_return and
            test_length, and the fractions with success at any step (test_success) and at the last
            (test_success_at_end); None without an episode, and where the environment reports no
            success. LayeredRL's test_success_in_ep and test_success_frac are the same two.
        """
        checks.state_of(test_state, name="test_state")
        n = self._test_instances(test_state)
        request = Request.checked(
            self.hierarchy, n, {"n_steps": n_steps}, video_logger=video_logger
        )
        stats = self._tested(request, test_state, n).stats()
        if not len(stats.lens):
            warnings.warn(
                f"no episode ended within the {n_steps} steps of the test: it has no returns. "
                f"Raise n_test_steps (n_steps of test), or use evaluate(n_episodes).",
                stacklevel=2,
            )
        words = ("return", "length", "success", "success_at_end")
        result = {"test_reward": stats["mean_reward"]}
        result = with_aliases(result | {f"test_{word}": stats[word] for word in words})
        if self.writer is not None:
            self._log("test", result, t)
        return result

    def _test_instances(self, state: HierarchyState) -> int:
        """Instances of a test."""
        if is_gymnasium(self.test_env):
            return getattr(self.test_env, "num_envs", 1)
        return state.n_env_instances

    @property
    def _shares_env(self) -> bool:
        """Whether tests reset the environment of training."""
        return self.test_env is self.env and is_gymnasium(self.env)

    def _tested(
        self, request: Request, state: HierarchyState, n: int, key: jax.Array | None = None
    ) -> Collected:
        """Carry out a request in the test environment."""
        stream = state.stream if key is None else None
        key = jax.random.fold_in(state.stream.key, Salt.TEST) if key is None else key
        env = self.test_env, self.test_env_params
        engine = make_engine(self.hierarchy, *env, n, self.preprocess)
        with interrupts.held():
            try:
                return run_test(request, self.hierarchy, engine, state, key, stream)
            finally:
                if self._shares_env and self._is_reset:
                    # Elsewhere each time: the test has left the environments' streams where it
                    # began.
                    seed = jax.random.fold_in(key, self.collect_step & 0x7FFFFFFF)
                    self.reset_env({"seed": int(jax.random.randint(seed, (), 0, 2**31 - 1))})
