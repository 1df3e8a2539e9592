"""Runs that go on: bit for bit, after signals and kills, with other settings, with learners."""

import contextlib
import csv
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import own_agent
import pytest

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.algorithms import SAC
from lrl_jax.levels import SACLevel
from lrl_jax.training import Interrupted, TrainConfig, folder, with_settings
from lrl_jax.training.summary import Summary

ROOT = Path(__file__).parent
SAC_LEVEL = SACLevel(SAC(hidden=(8,)), buffer_size=400, batch_size=8, warm_up_steps=16)
PENDULUM = TrainConfig(
    (SAC_LEVEL,),
    "Pendulum-v1",
    n_env_instances=2,
    total_steps=160,
    round_ticks=2,
    test_interval=40,
    test_episodes=2,
    final_test_episodes=2,
    chunk_rounds=10,
)


def rows(run):
    """The log without what tells times."""
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: x for k, x in row.items() if "second" not in k} for row in table]


def same_runs(a, b, **how):
    one, two = (lrl.load_run(run, **how)[1] for run in (a, b))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
    ):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert rows(a) == rows(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stops."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    lrl.train(PENDULUM, run, progress=False)
    return run


# ------------------------------------------------------------------------ going on


def test_a_run_goes_on_for_more_steps_bit_for_bit(tmp_path, whole):
    half = dataclasses.replace(PENDULUM, total_steps=80)
    lrl.train(half, tmp_path / "run", progress=False)
    summary = lrl.train(None, tmp_path / "run", False, resume=True, total_steps=160)
    assert summary.env_steps == 160
    same_runs(whole, tmp_path / "run")
    # The final tests are the same, as all of the state is.
    assert summary.return_of_seeds == Summary.load(whole).return_of_seeds


def test_a_finished_run_is_returned_as_it_is(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert lrl.train(PENDULUM, whole, False, resume=True).env_steps == 160
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_on_the_host_goes_on_bit_for_bit(tmp_path):
    config = dataclasses.replace(PENDULUM, env="gymnasium/Pendulum-v1")
    lrl.train(config, tmp_path / "whole", progress=False)
    half = dataclasses.replace(config, total_steps=80)
    lrl.train(half, tmp_path / "run", progress=False)
    lrl.train(config, tmp_path / "run", False, resume=True)
    same_runs(tmp_path / "whole", tmp_path / "run")


def test_several_agents_go_on_bit_for_bit(tmp_path):
    config = dataclasses.replace(PENDULUM, sweep={"levels.0.gamma": (0.9, 0.99)})
    lrl.train(config, tmp_path / "whole", progress=False)
    half = dataclasses.replace(config, total_steps=80)
    lrl.train(half, tmp_path / "run", progress=False)
    lrl.train(config, tmp_path / "run", False, resume=True)
    same_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, whole, number, capsys):
    def stop(env_steps, state, row):
        if env_steps == 80:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"{number.name} after 80 .*lrl-jax resume") as caught:
        lrl.train(PENDULUM, tmp_path / "run", progress=False, callbacks=[stop])
    assert caught.value.env_steps == 80 and caught.value.signal == number
    assert "once more to stop at once" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    lrl.train(PENDULUM, tmp_path / "run", False, resume=True)
    same_runs(whole, tmp_path / "run")


def test_what_fails_in_a_callback_leaves_a_run_that_goes_on(tmp_path, whole):
    def fail(env_steps, state, row):
        if env_steps == 120:
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        lrl.train(PENDULUM, tmp_path / "run", progress=False, callbacks=[fail])
    assert not (tmp_path / "run" / ".lock").exists()
    lrl.train(PENDULUM, tmp_path / "run", False, resume=True)
    same_runs(whole, tmp_path / "run")


# --------------------------------------------- own levels and environments; processes


@contextlib.contextmanager
def process(*args):
    """A command that is over when the block is."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)])}
    child = subprocess.Popen(
        [sys.executable, "-m", "lrl_jax.cli", *map(str, args)],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_for_checkpoint(run, child, patience=300):
    """Wait until a run has written a checkpoint."""
    began = time.monotonic()
    while not folder.numbered(run / "checkpoints"):
        assert child.poll() is None, child.stdout.read()
        assert time.monotonic() - began < patience
        time.sleep(0.02)


@pytest.mark.extras
def test_own_levels_and_environment_are_killed_resumed_loaded_and_tested(tmp_path, capsys):
    run, config = tmp_path / "run", own_agent.config()
    options = ("--out", run, "--quiet", "--total-steps", "4e6")
    with process("train", "own_agent:config", *options) as child:
        wait_for_checkpoint(run, child)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    reached = folder.steps_of(folder.last_checkpoint(run))

    with pytest.raises(ValueError, match=r"Bandit, which is not known.*classes=\[Bandit\]"):
        lrl.load_run(run)
    mine = {"classes": [own_agent.Bandit, own_agent.Push, own_agent.Point]}
    with pytest.raises(ValueError, match="env was a Point object"):
        lrl.load_run(run, classes=mine["classes"][:2])
    total = reached + 800
    summary = lrl.train(None, run, False, resume=True, total_steps=total, **mine)
    assert summary.env_steps == total and summary.test_success == 1.0
    # As a run that was never stopped: the log of all steps, and all arrays.
    whole = tmp_path / "whole"
    lrl.train(own_agent.config(total), whole, progress=False)
    same_runs(whole, run, **mine)

    hierarchy, state, env, params = lrl.load_run(run, **mine)
    assert hierarchy.levels == config.levels and params.drag == 0.05
    episodes = lrl.evaluate(hierarchy, state, jax.random.key(0), 4)
    assert np.all(episodes.success)
    sys.modules.pop("own_agent")
    cli.main(["test", str(run), "--episodes", "4", "--config", "own_agent:config"])
    assert "success 1.000" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_its_status(tmp_path, number):
    run = tmp_path / "run"
    options = ("--out", run, "--quiet", "--total-steps", "4e6")
    with process("train", "own_agent:config", *options) as child:
        wait_for_checkpoint(run, child)
        child.send_signal(number)
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 128 + number
    assert f"lrl-jax resume {run}" in out and "Traceback" not in out


# ---------------------------------------------------------------- settings, learners


def test_other_settings_are_refused_and_can_be_asked_for(tmp_path):
    run = tmp_path / "run"
    lrl.train(dataclasses.replace(PENDULUM, total_steps=80), run, progress=False)
    other = with_settings(PENDULUM, {"levels.0.learning_rate": 0.0, "total_steps": 160})
    with pytest.raises(ValueError, match=r"levels.0.algorithm.learning_rate: 0.0003 there, 0.0"):
        lrl.train(other, run, False, resume=True)
    before = lrl.load_run(run)[1].levels[0].learner.state
    lrl.train(other, run, False, resume=True, settings="new")
    after = lrl.load_run(run)[1].levels[0].learner.state
    assert after.settings["learning_rate"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, before.actor, after.actor)  # it did not move
    assert int(after.critic_opt.count) > int(before.critic_opt.count)
    with pytest.raises(ValueError, match="n_env_instances=4, but the run has 2"):
        changed = with_settings(other, {"n_env_instances": 4, "total_steps": 320})
        lrl.train(changed, run, False, resume=True, settings="new")


def test_another_function_of_the_same_name_is_refused(tmp_path):
    """A file can only name functions; the checkpoint knows what they do."""
    run, half = tmp_path / "run", dataclasses.replace(PENDULUM, total_steps=40)
    lrl.train(dataclasses.replace(half, obs_maps=(lambda obs: 2 * obs,)), run, progress=False)
    other = dataclasses.replace(PENDULUM, obs_maps=(lambda obs: 3 * obs,))
    with pytest.raises(ValueError, match="obs_maps"):
        lrl.train(other, run, False, resume=True)
    same = dataclasses.replace(half, obs_maps=(lambda obs: 2 * obs,), total_steps=80)
    assert lrl.train(same, run, False, resume=True).env_steps == 80
    # What the new config is made of is known in the folder whose learner it begins with.
    lrl.train(half, tmp_path / "plain", False, learners=[run], classes=same.obs_maps)
    lrl.train(same, tmp_path / "again", False, learners=[run])


def test_learners_of_another_run_begin_a_run(tmp_path, whole):
    config = dataclasses.replace(PENDULUM, total_steps=40)
    frozen = with_settings(config, {"levels.0.learning_rate": 0.0})
    lrl.train(frozen, tmp_path / "run", progress=False, learners=[whole])
    got, given = (lrl.load_run(run)[1].levels[0].learner.state for run in (tmp_path / "run", whole))
    jax.tree.map(np.testing.assert_array_equal, got.actor, given.actor)
    assert got.settings["learning_rate"] == 0.0
    wide = with_settings(config, {"levels.0.algorithm.hidden": (4,)})
    with pytest.raises(ValueError, match="belongs to a level with other settings"):
        lrl.train(wide, tmp_path / "other", progress=False, learners=[whole])
    assert not (tmp_path / "other").exists()


def test_callbacks_log_and_stop(tmp_path):
    seen = []

    def callback(env_steps, state, row):
        seen.append((env_steps, int(state.n_total_env_steps), row["test_return"]))
        return {"own": 2 * env_steps}

    stop = lambda env_steps, *_: env_steps >= 80  # noqa: E731
    run = tmp_path / "run"
    summary = lrl.train(PENDULUM, run, progress=False, callbacks=[callback, stop])
    assert summary.env_steps == 80 and [x[:2] for x in seen] == [(40, 40), (80, 80)]
    assert [float(row["own"]) for row in rows(run)] == [80, 160]


# --------------------------------------------------------------- folders, checkpoints


def test_two_runs_never_share_a_folder(tmp_path):
    config = own_agent.config(400)
    errors, run = [], tmp_path / "run"

    def go():
        try:
            lrl.train(config, run, progress=False)
        except FileExistsError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1 and "already holds a run" in errors[0]
    assert (run / "summary.json").exists()
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked(run))
        with pytest.raises(FileExistsError, match="another process trains"):
            stack.enter_context(folder.locked(run))


def test_folders_that_begin_together_differ(tmp_path):
    names = {folder.new_folder("gymnasium/x", tmp_path) for _ in range(4)}
    assert len(names) == 4 and all(path.is_dir() for path in names)


def test_checkpoints_are_counted_and_the_last_is_the_furthest(tmp_path):
    run = tmp_path / "run"
    lrl.train(dataclasses.replace(PENDULUM, max_to_keep=1), run, progress=False)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["final", "step_000000000120"]
    assert folder.last_checkpoint(run).name == "final"
    place = tmp_path / "numbers"
    for number in (900_000_000, 1_100_000_000_000, 1_000_000_000):
        folder.checkpoint_path(place, number).mkdir(parents=True)
    assert folder.numbered(place)[-1].name == "step_1100000000000"


# ------------------------------------------------------------------------ divergence


class BreaksDown(own_agent.Point):
    """A point whose reward is NaN once, in instances that have gone far."""

    def step_env(self, key, state, action, params):
        obs, state, reward, done, info = super().step_env(key, state, action, params)
        broken = (state.time == 13) & (state.position[0] > 0.3)
        return obs, state, jax.numpy.where(broken, jax.numpy.nan, reward), done, info


def test_a_run_that_is_not_finite_ends_and_names_the_instance(tmp_path):
    config = dataclasses.replace(own_agent.config(), env=BreaksDown())
    with pytest.raises(FloatingPointError, match=r"instance [0-3] had a reward"):
        lrl.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "summary.json").exists()
    allowed = dataclasses.replace(config, nan="allow", total_steps=800)
    lrl.train(allowed, tmp_path / "allowed", progress=False)


def test_losses_that_diverge_end_a_run(tmp_path, whole):
    config = with_settings(PENDULUM, {"levels.0.learning_rate": 1e30})
    with pytest.raises(FloatingPointError, match=r"updates of level0 diverged|not finite"):
        lrl.train(config, tmp_path / "run", progress=False)
