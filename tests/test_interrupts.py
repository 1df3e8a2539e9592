"""An interrupt at any moment leaves a collector that goes on, with counts that agree."""

import functools
import os
import random
import signal
import sys
import threading

import jax
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax import interrupts
from lrl_jax.algorithms import SAC
from lrl_jax.levels import SACLevel

KINDS = ("jax", "sync", "async", "futures")
N = 3


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    """A collector that learns, and how it is asked for ticks."""
    level = SACLevel(
        SAC(hidden=(8,)), buffer_size=600, batch_size=8, update_interval=9, warm_up_steps=12
    )
    if request.param == "jax":
        env, params = lrl.make("Pendulum-v1")
        hierarchy = lrl.Hierarchy([level], env, params)
        yield lrl.Collector(hierarchy, env, n_env_instances=N, buffer=90), "n_steps"
        return
    envs = [functools.partial(ScriptedGym, i, (7, 12)) for i in range(N)]
    if request.param == "futures":
        with lrl.AsyncCollector(lrl.Hierarchy([level], envs[0]()), envs, buffer=90) as collector:
            yield collector, "n_total_steps"
        return
    if request.param == "async":
        mode = AutoresetMode.DISABLED
        env = AsyncVectorEnv(envs, autoreset_mode=mode, context="forkserver")
    else:
        env = SyncVectorEnv(envs)
    try:
        yield lrl.Collector(lrl.Hierarchy([level], env), env, buffer=90), "n_steps"
    finally:
        env.close()


def begin(collector):
    """Start a run with counts that agree."""
    collector.reset(seed=0)
    collector.state = collector.hierarchy.init(jax.random.key(0), N)


def check(collector, unit):
    """The state and the buffer can be read, the counts agree, and the collector goes on."""
    jax.block_until_ready(collector.state)
    taken = int(collector.state.n_total_env_steps)
    assert taken == collector.collect_step
    lrl.buffers.stored(collector.buffer)
    stats = collector.collect(**{unit: 6}, learn=True)
    added = stats.n_collected_steps
    assert int(collector.state.n_total_env_steps) == taken + added == collector.collect_step
    assert added == (6 * N if unit == "n_steps" else 6) + stats.n_steps_beyond


def interrupted_at(line, collect):
    """Call `collect` with Ctrl-C at that line of the library's; the lines it has, or None."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if "/lrl_jax/" not in frame.f_code.co_filename:
            return None
        if event == "line" and interrupts.__file__ != frame.f_code.co_filename:
            seen += 1
            if seen == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        collect()
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(before)
    return seen


def test_an_interrupt_at_a_line(made):
    collector, unit = made
    begin(collector)
    collect = functools.partial(collector.collect, **{unit: 5}, learn=True)
    collect()
    n_lines = interrupted_at(None, collect)
    assert n_lines is not None
    rng = random.Random(0)
    # Processes answer together or one by one, which makes a few lines more or less.
    for line in sorted(rng.sample(range(1, n_lines - 60), 12)):
        assert interrupted_at(line, collect) is None
        check(collector, unit)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("n_moments", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_an_interrupt_at_a_moment(made, n_moments):
    collector, unit = made
    begin(collector)
    collector.collect(**{unit: 30}, learn=True)
    rng = random.Random(1)
    for _ in range(n_moments):
        kill = functools.partial(os.kill, os.getpid(), signal.SIGINT)
        timer = threading.Timer(rng.uniform(0.0, 0.3), kill)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            collector.collect(**{unit: 10_000_000}, learn=True)
        check(collector, unit)
