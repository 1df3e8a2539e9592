"""Runs and their folders, the command line, make_train, evaluation of whole episodes."""

import csv
import dataclasses
import functools
import json
import shutil
import types

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment
from gymnax.environments import spaces as gymnax_spaces
from tensorboardX.proto.event_pb2 import Event

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.collectors import evaluate
from lrl_jax.levels import RandomLevel
from lrl_jax.training import (
    PRESETS,
    TrainConfig,
    Trainer,
    drawing,
    load_config,
    load_run,
    load_trainer,
    make_train,
    preset,
    take_seed,
    to_json,
    with_settings,
)

SMOKE = preset("smoke")


# ------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smoke preset, run from the command line with two settings changed."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    seen = types.SimpleNamespace(folder=folder, traces=[])
    draw, chunk, test_metrics = drawing.draw, Trainer.chunk, Trainer.test_metrics

    def draw_seen(trainer, state, run, agent):
        seen.trainer, seen.state = trainer, state
        return draw(trainer, state, run, agent)

    def counting(name, method):
        def wrapped(*args, **kwargs):
            seen.traces.append(name)
            return method(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", draw_seen)
        patch.setattr(Trainer, "chunk", counting("chunk", chunk))
        patch.setattr(Trainer, "test_metrics", counting("test", test_metrics))
        settings = ["--test-interval", "560", "--levels.0.n-updates", "3"]
        cli.main(["train", "smoke", "--out", str(folder), "--quiet", *settings])
    return seen


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_it_should(finished):
    folder = finished.folder
    names = {"config.json", "metrics.csv", "summary.json", "learning_curve.png", "paths.png"}
    names |= {"rollout.gif", "tensorboard", "checkpoints"}
    assert names == {path.name for path in folder.iterdir()}
    assert (folder / "checkpoints" / "final").is_dir()
    for name in ("learning_curve.png", "paths.png"):
        assert imageio.imread(folder / name).ndim == 3
    assert imageio.imread(folder / "rollout.gif").shape[0] > 10


def test_the_config_holds_the_settings_of_the_command_line(finished):
    expected = with_settings(SMOKE, {"levels.0.n_updates": 3, "test_interval": 560})
    assert load_config(finished.folder) == expected.resolved()


def test_metrics_have_a_row_for_every_interim_test(finished):
    rows = rows_of(finished.folder)
    # total_steps=1600 is 20 rounds of 80; tests about 7 rounds (560 steps) apart make it 3 times 6.
    assert [int(row["env_steps"]) for row in rows] == [480, 960, 1440]
    numbers = ("seconds", "env_steps_per_second", "train_reward", "test_return", "test_success")
    for row in rows:
        assert all(np.isfinite(float(row[name])) for name in (*numbers, "level0/loss"))
    assert float(rows[0]["compile_seconds"]) > 0 and rows[1]["compile_seconds"] == ""


def test_tensorboard_events_say_what_metrics_say(finished):
    (file,) = (finished.folder / "tensorboard").iterdir()
    data, events = file.read_bytes(), {}
    while data:  # records: length (8 bytes), checksum (4), event, checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            events[value.tag, event.step] = value.simple_value
    for row in rows_of(finished.folder):
        for name in ("test_return", "level0/loss"):
            assert events[name, int(row["env_steps"])] == pytest.approx(float(row[name]))


def test_the_summary_holds_the_figures_of_the_final_test(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["env_steps"] == 1440 == int(finished.state.n_total_env_steps)
    assert summary["test_episodes"] == SMOKE.final_test_episodes
    assert 0 <= summary["test_success"] <= 1 and -400 < summary["test_return"] < 0
    assert summary["steps_per_second"] > 0 and summary["train_seconds"] > 0
    assert summary["seeds"] == [0] and summary["pictured"] == 0
    assert summary["return_of_seeds"] == [summary["test_return"]]
    assert summary["success_of_seeds"] == [summary["test_success"]]
    assert summary["return_interval"] is summary["success_interval"] is None


def test_chunks_and_interim_tests_compile_once(finished):
    assert sorted(finished.traces) == ["chunk", "test"]


def test_a_loaded_run_acts_as_the_trained_one(finished):
    hierarchy, state, env, params = load_run(finished.folder)
    assert env == finished.trainer.env and params == finished.trainer.params
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(finished.state), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    n = state.n_env_instances
    obs, _ = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(5), n), params)
    act = jax.jit(hierarchy.get_action)
    trained = jax.jit(finished.trainer.hierarchy.get_action)
    for _ in range(2):
        state, action = act(state, obs)
        finished.state, expected = trained(finished.state, obs)
        np.testing.assert_array_equal(action, expected)


def test_the_command_line_tests_a_run(finished, capsys):
    cli.main(["test", str(finished.folder), "--episodes", "3"])
    out = capsys.readouterr().out
    assert "success" in out and "over 3 episodes" in out and str(finished.folder) in out


# ---------------------------------------------------------------- the command line


def refused(capsys, *args):
    """What the command line says in refusing `args`: one line, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in args])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_preset_is_refused_with_the_names_of_all(capsys):
    error = refused(capsys, "train", "no-such-preset")
    assert error.count("\n") == 1
    assert "no-such-preset" in error and all(name in error for name in PRESETS)


def test_a_folder_that_holds_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(SMOKE))
    assert "already holds a run" in refused(capsys, "train", "smoke", "--out", tmp_path)
    assert "already holds a run" in refused(capsys, "train", "smoke", f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(FileExistsError, match="choose another folder"):
        lrl.train(SMOKE, tmp_path)


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
    error = refused(capsys, "test", tmp_path)
    assert error.count("\n") == 1 and "not a run folder" in error
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        load_run(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(SMOKE))
    error = refused(capsys, "test", tmp_path)
    assert error.count("\n") == 1 and "no checkpoint" in error


@pytest.mark.parametrize(
    "args, says",
    [
        (["fly"], "unknown command 'fly'"),
        (["train", "smoke", "--out"], "--out needs a folder"),
        (["train", "smoke", "--total-steps", "0"], "total_steps must be"),
        (["train", "smoke", "--total-steps", "79"], "less than one round"),
        (["train", "smoke", "--no-such-setting", "1"], "no-such-setting"),
    ],
)
def test_other_mistakes_on_the_command_line(capsys, args, says):
    assert says in refused(capsys, *args)


def test_the_usage_lists_commands_and_presets(capsys):
    cli.main([])
    out = capsys.readouterr().out
    assert "lrl-jax test RUN" in out and all(name in out for name in PRESETS)


# ----------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "change, says",
    [
        ({"n_env_instances": 0}, "n_env_instances must be"),
        ({"total_steps": 1.5}, "total_steps must be"),
        ({"test_episodes": True}, "test_episodes must be"),
        ({"seed": -1}, "seed must be"),
        ({"n_env_instances": 1000}, "raise it to 10000 or more"),
    ],
)
def test_settings_out_of_range_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(SMOKE, **change)


def test_total_steps_are_never_exceeded_and_hardly_missed():
    rng = np.random.default_rng(0)
    levels = (RandomLevel(),)
    for _ in range(500):
        n, ticks = (int(x) for x in rng.integers(1, 50, 2))
        total = int(rng.integers(n * ticks, 100_000))
        config = TrainConfig(
            levels,
            n_env_instances=n,
            round_ticks=ticks,
            total_steps=total,
            test_interval=int(rng.integers(1, 120_000)),
        )
        taken = sum(config.chunks) * config.round_steps
        assert len(config.chunks) == config.n_chunks
        # Less than a round for each test, and the round that does not fit.
        assert total - (config.n_chunks + 1) * config.round_steps < taken <= total


# -------------------------------------------------------------------- make_train


@pytest.fixture(scope="module")
def two_seeds():
    """make_train of the smoke preset: both seeds under vmap, and the second one alone."""
    train = make_train(SMOKE)
    keys = jax.random.split(jax.random.key(0), 2)
    before = jax.config.read("jax_disable_most_optimizations")
    # Most of the time is compilation, and what runs is small.
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        both, alone = jax.jit(jax.vmap(train))(keys), jax.jit(train)(keys[1])
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    return types.SimpleNamespace(both=both, alone=alone)


def test_seeds_under_vmap_train_as_they_do_alone(two_seeds):
    picked, alone = take_seed(two_seeds.both, 1), two_seeds.alone
    assert jax.tree.structure(picked) == jax.tree.structure(alone)
    for a, b in zip(jax.tree.leaves(picked), jax.tree.leaves(alone), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype == np.uint32:  # packed words of rows: floats round otherwise, others do not
            differ = a != b
            a, b = a[differ].view(np.float32), b[differ].view(np.float32)
            assert (np.abs(a) > 1e-6).all()
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        else:
            np.testing.assert_array_equal(a, b)


def test_seeds_differ(two_seeds):
    losses = np.asarray(two_seeds.both["metrics"]["level0/loss"])
    assert losses.shape == (2, SMOKE.n_chunks) and np.all(losses[0] != losses[1])


def test_take_seed_picks_one_and_refuses_what_is_not_there(two_seeds):
    tree = {"a": np.arange(6).reshape(2, 3), "b": np.array([4, 5])}
    picked = take_seed(tree, -1)
    assert picked["b"] == 5
    np.testing.assert_array_equal(picked["a"], [3, 4, 5])
    with pytest.raises(ValueError, match="no seed 2"):
        take_seed(tree, 2)


def test_the_updates_made_are_those_owed(two_seeds):
    (planner, hold), state = SMOKE.levels, two_seeds.alone["state"]
    rows = int(lrl.buffers.n_rows(state.levels[0].buffer))
    owed, rest = divmod(rows, planner.update_interval)
    assert rows == SMOKE.total_steps // hold.control_interval  # none was dropped, no episode ended
    assert two_seeds.alone["metrics"]["level0/n_updates"].sum() == owed * planner.n_updates > 0
    assert state.levels[0].owed == rest
    assert int(state.n_total_env_steps) == SMOKE.total_steps


# -------------------------------------------------------------------- evaluation

LIMIT = 4


@struct.dataclass
class LengthState:
    time: jax.Array
    length: jax.Array


@struct.dataclass
class LengthParams:
    max_steps_in_episode: int = LIMIT


class Lengths(environment.Environment):
    """Episodes of a length drawn from 1 to 6 terminate there, or are truncated at step 4.

    Step k = 1, 2, ... is worth 10 * length + k. Success is shown in step 2 of lengths that are
    even and in step 1 of length 1.
    """

    @property
    def name(self):
        return "Lengths"

    @property
    def default_params(self):
        return LengthParams()

    def observe_all(self, state):
        return jnp.stack([state.time, state.length]).astype(jnp.float32)

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1)
        success = ((state.time == 2) & (state.length % 2 == 0)) | (state.length == 1)
        reward = (10 * state.length + state.time).astype(jnp.float32)
        done = state.time >= state.length
        return self.observe_all(state), state, reward, done, {"is_success": success}

    def reset_env(self, key, params):
        length = jax.random.randint(key, (), 1, 7)
        state = LengthState(time=jnp.zeros((), jnp.int32), length=length)
        return self.observe_all(state), state

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode

    def action_space(self, params=None):
        return gymnax_spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params):
        return gymnax_spaces.Box(0.0, 10.0, (2,))


def episode_in_python(length, max_steps):
    """(return, steps, success, success at the end, finished) of the first episode alone."""
    total = success = steps = 0
    now = finished = False
    while steps < max_steps and not finished:
        steps += 1
        total += 10 * length + steps
        now = (steps == 2 and length % 2 == 0) or length == 1
        success |= now
        finished = steps >= length or steps >= LIMIT
    return total, steps, bool(success), finished and now, finished


@functools.cache
def lengths_hierarchy():
    env = Lengths()
    hierarchy = lrl.RandomHierarchy(env)
    return env, env.default_params, hierarchy, hierarchy.init(jax.random.key(0), 2)


@pytest.mark.parametrize("max_steps", [2, 4, 11])
def test_evaluate_counts_the_first_episode_of_each_instance_alone(max_steps):
    env, params, hierarchy, state = lengths_hierarchy()
    n = 48
    episodes = evaluate(hierarchy, state, jax.random.key(3), n, max_steps=max_steps)
    # With this reward, the first step's tells the length: 10 * length + 1.
    one = evaluate(hierarchy, state, jax.random.key(3), n, max_steps=1)
    lengths = ((np.asarray(one.episode_return) - 1) / 10).astype(int)
    assert set(lengths) == set(range(1, 7))
    for i, length in enumerate(lengths):
        *got, told = (np.asarray(x)[i] for x in dataclasses.astuple(episodes))
        assert told and tuple(got) == episode_in_python(length, max_steps), (i, length)


def test_evaluate_leaves_the_state_alone_and_repeats_itself():
    env, params, hierarchy, state = lengths_hierarchy()
    before = [np.asarray(x) for x in jax.tree.leaves(state.levels)]
    run = functools.partial(evaluate, hierarchy, state, n_episodes=6, max_steps=5)
    first, again = (run(jax.random.key(3)) for _ in range(2))
    other = run(jax.random.key(4))
    for a, b in zip(before, jax.tree.leaves(state.levels), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.episode_return, again.episode_return)
    assert np.any(np.asarray(first.episode_return) != np.asarray(other.episode_return))
    assert int(state.n_total_env_steps) == 0


def test_an_unfinished_run_loads_its_last_checkpoint(tmp_path, finished):
    shutil.copytree(finished.folder, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} == {
        "step_000000000480",
        "step_000000000960",
        "final",
    }
    shutil.rmtree(checkpoints / "final")
    (checkpoints / "step_000000001440").mkdir()  # it was being written
    _, state = load_trainer(tmp_path / "run")
    assert int(state.n_total_env_steps) == 960
