"""Requests to a collector, checked once, and the loop that carries them out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from lrl_jax import interrupts
from lrl_jax.collectors.counting import Owed
from lrl_jax.collectors.rollout import check_learn, check_record
from lrl_jax.collectors.stats import Collected
from lrl_jax.collectors.video import Frames, VideoLogger
from lrl_jax.hierarchies import Hierarchy
from lrl_jax.settings import check_choice, check_flag, check_float, check_int

_MAX_CHUNK = 128  # ticks whose records the device holds at a time
_MAX_STEPS = 1_000_000  # ticks after which a call that counts episodes gives up
_NO_LIMIT = 2**62
_ALLOCATIONS = {"any": "n_episodes", "quota": "n_episodes_quota"}


@dataclasses.dataclass(frozen=True)
class Way:
    """How ticks are taken, which is what they are compiled for.

    Attributes:
        mode: of counting, see `counting.MODES`.
        learn: make the updates owed after each tick.
        record: False, True to keep the transitions, "levels" to keep what each level did too.
        random: act at random and leave the hierarchy alone.
        capacity: most ticks of a chunk; 1 also keeps the next observation. It does not depend on
            how much is asked for, so that any amount compiles once.
        checks: whether steps that are not finite are kept out.
        frames: whether frames are drawn of the first instance.
    """

    mode: str = "n_steps"
    learn: bool = False
    record: bool | str = False
    random: bool = False
    capacity: int = _MAX_CHUNK
    checks: bool = False
    frames: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call collects; see the arguments of `Collector.collect`.

    Attributes:
        way: how ticks are taken.
        amount: ticks, steps or episodes still to be collected.
        start: number of the first tick.
        limit: number of the first tick that is not taken.
        log_interval, test_interval, checkpoint_interval: ticks, or None.
        n_test_steps, verbose, post_step_callback, video_logger, render, gym_reset_kwargs, nan: as
            given.
    """

    way: Way
    amount: int
    start: int
    limit: int
    log_interval: int | None = None
    test_interval: int | None = None
    checkpoint_interval: int | None = None
    n_test_steps: int = 1000
    verbose: bool = False
    post_step_callback: Callable[[int, Any], Any] | None = None
    video_logger: VideoLogger | None = None
    render: float | None = None
    gym_reset_kwargs: dict[str, Any] | None = None
    nan: str = "allow"

    @classmethod
    def checked(
        cls,
        hierarchy: Hierarchy,
        n: int,
        amounts: dict[str, Any],
        *,
        n_steps_start: int = 0,
        episode_allocation: str = "any",
        max_steps: int | None = None,
        learn: bool = False,
        record: bool | str = False,
        random: bool = False,
        or_more: bool = False,
        nan: str = "allow",
        **more: Any,
    ) -> Request:
        """A request of n instances that can be carried out.

        Args:
            hierarchy: acts.
            n: number of instances.
            amounts: n_steps, n_total_steps and n_episodes as given, one of them not None.
            n_steps_start, episode_allocation, max_steps, learn, random: see `Collector.collect`.
            record: its `record_transitions`.
            or_more: steps arrive on their own, so that more than asked for may be collected.
            nan: see `Collector`.
            **more: other attributes.

        Raises:
            ValueError, TypeError: for what does not go together or is out of range.
        """
        learn, random = check_learn(hierarchy, learn), check_flag("random", random)
        if "verbose" in more:
            more["verbose"] = check_flag("verbose", more["verbose"])
        mode, amount = _asked(amounts, episode_allocation)
        start = check_int("n_steps_start", n_steps_start, 0, 2**63 - 1)
        if mode != "n_steps" and start:
            raise ValueError(f"n_steps_start={start} goes with n_steps only.")
        if mode == "n_steps" and start >= amount:
            raise ValueError(f"n_steps_start={start} leaves no step up to n_steps={amount}.")
        if max_steps is not None:
            max_steps = check_int("max_steps", max_steps, 1)
            if not mode.startswith("n_episodes"):
                raise ValueError("max_steps goes with n_episodes only: other calls end anyway.")
        record = check_record("record_transitions", record)
        _check_random(hierarchy, random, learn, record)
        for name in ("log_interval", "test_interval", "checkpoint_interval", "n_test_steps"):
            if more.get(name) is not None:
                more[name] = check_int(name, more[name], 1)
        _check_shown(more)
        limit = {"n_steps": amount, "n_total_steps": -(-amount // n)}.get(
            mode, max_steps or _MAX_STEPS
        )
        if or_more and mode == "n_total_steps":
            mode, limit = "n_steps_or_more", _NO_LIMIT
        looked_at = ("post_step_callback", "video_logger", "render")
        one_by_one = any(more.get(name) is not None for name in looked_at)
        capacity = 1 if one_by_one else max(1, min(_MAX_CHUNK, 2**20 // n))
        frames = any(more.get(name) is not None for name in ("video_logger", "render"))
        way = Way(mode, learn, record, random, capacity, nan != "allow", frames)
        return cls(way, amount - start, start, limit, nan=nan, **more)

    def numbered_from(self, tick: int) -> Request:
        """The same with another number for the first tick."""
        return dataclasses.replace(self, start=tick, limit=self.limit - self.start + tick)

    def begun(self, n: int) -> Collected:
        """What n instances have collected before the first tick."""
        return Collected(self.way.mode, Owed.begin(self.way.mode, self.amount, n))

    def next_stop(self, t: int) -> int:
        """Tick up to which nothing is due after tick t."""
        intervals = (self.log_interval, self.test_interval, self.checkpoint_interval)
        due = [-(-t // i) * i + 1 for i in intervals if i is not None]
        return min([self.limit, t + self.way.capacity, *due])


def due(interval: int | None, t: int) -> bool:
    """Whether what happens every `interval` ticks happens after tick t."""
    return interval is not None and t % interval == 0


def _asked(amounts: dict[str, Any], allocation: str) -> tuple[str, int]:
    """Mode of counting and the number asked for."""
    numbers = {name: value for name, value in amounts.items() if value is not None}
    if len(numbers) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(amounts)}, got {numbers or 'none of them'}."
        )
    ((mode, value),) = numbers.items()
    check_choice("episode_allocation", allocation, sorted(_ALLOCATIONS))
    if mode != "n_episodes" and allocation != "any":
        raise ValueError(f"episode_allocation={allocation!r} goes with n_episodes only.")
    amount = check_int(mode, value, 1, 2**63 - 1)
    return (_ALLOCATIONS[allocation] if mode == "n_episodes" else mode), amount


def _check_random(hierarchy: Hierarchy, random: bool, learn: bool, record: Any) -> None:
    if random and learn:
        raise ValueError("random=True leaves the hierarchy alone: it cannot learn=True.")
    if random and record == "levels":
        raise ValueError('random=True leaves the levels alone: there is no record of "levels".')
    if random and not hierarchy.action_space.is_bounded:
        raise ValueError(
            f"random actions cannot be drawn from the unbounded {hierarchy.action_space}."
        )


def _check_shown(more: dict[str, Any]) -> None:
    """Refuse what cannot be called back, filmed or waited for."""
    render, callback = more.get("render"), more.get("post_step_callback")
    if render is not None:
        check_float("render, the seconds between frames,", render, 0.0)
    if callback is not None and not callable(callback):
        raise TypeError(f"post_step_callback is not callable: {callback!r}.")
    video = more.get("video_logger")
    if video is not None and not callable(getattr(video, "record", None)):
        raise TypeError(f"video_logger has no method record: {video!r}. Give VideoLogger(path).")


def carry_out(
    request: Request,
    hierarchy: Hierarchy,
    engine: Any,
    out: Collected,
    after: Callable[[int, bool], None] | None = None,
) -> None:
    """Collect what is asked for, chunk by chunk: the one loop over ticks of all collectors.

    To be held (`lrl_jax.interrupts`): it is interrupted between chunks, and where the host waits
    for environments or calls functions of the user's.

    Args:
        request: what for.
        hierarchy: acts, in the mode that is meant.
        engine: of the environments, after a reset.
        out: of `request.begun`; what is collected is added, also if an exception ends the loop.
        after: called after each chunk, of the last tick t, with (t, whether something may be due).
    """
    way, t = request.way, request.start
    shown = Frames(hierarchy, engine, request.video_logger, request.render, not way.random)
    out.owed = engine.begin(hierarchy, way, out.owed, request.gym_reset_kwargs)
    end = request.limit if way.mode == "n_steps" else None
    bar = tqdm(total=end, initial=t, disable=not request.verbose, unit="tick")
    try:
        with bar as progress:
            while t < request.limit:
                stop = request.next_stop(t)
                with interrupts.let_through():
                    shown.before(out.owed)
                out.latest.clear()
                began, before = time.monotonic(), out.n_ticks
                try:
                    engine.run(hierarchy, way, out, stop - t)
                finally:
                    out.seconds += time.monotonic() - began
                record = out.latest[-1]
                progress.update(out.n_ticks - before)
                t += out.n_ticks - before
                if way.checks:
                    out.check(request.start, raises=request.nan == "raise")
                with interrupts.let_through():
                    if way.capacity == 1:
                        if request.post_step_callback is not None:
                            request.post_step_callback(t - 1, record.obs_next)
                        shown.after(record)
                    if after is not None:
                        after(t - 1, t == stop)
                if request.verbose:
                    progress.set_postfix(out.shown(), refresh=False)
                if not np.any(out.owed.active):
                    break
    finally:  # also where a callback fails
        shown.end()
        if way.random:  # the environments have moved on under the hierarchy: it starts afresh
            engine.set_state(hierarchy, hierarchy.reset(engine.state()))
