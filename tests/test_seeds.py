"""Many seeds in one run, the statistics over them, and environments that do not tell success."""

import contextlib
import csv
import dataclasses
import functools
import json
import types

import imageio.v3 as imageio
import jax
import numpy as np
import pytest
import scipy.stats

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.levels import RandomLevel
from lrl_jax.training import (
    PRESETS,
    TrainConfig,
    Trainer,
    drawing,
    load_config,
    load_run,
    preset,
    take_seed,
)
from lrl_jax.training import run as run_module
from lrl_jax.training.sessions import test_episodes as episodes_of_a_test
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean, over_seeds

SMOKE = preset("smoke")

# -------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "values, expected",
    [
        ([3.0], 3.0),
        ([1.0, 2.0], 1.5),
        ([9.0, 1.0, 2.0], (0.25 * 1 + 2 + 0.25 * 9) / 1.5),
        ([-100.0, 1.0, 3.0, 100.0], 2.0),
        ([5.0, 1.0, 2.0, 3.0, 4.0], (0.75 * 2 + 3 + 0.75 * 4) / 2.5),
        ([1.0, np.nan, 2.0, 3.0, 4.0], np.nan),
        ([-np.inf, 1.0, 3.0, np.inf], 2.0),
    ],
)
def test_interquartile_means_worked_by_hand(values, expected):
    np.testing.assert_allclose(interquartile_mean(values), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_interquartile_mean_is_the_trimmed_mean_where_four_divides_n(n):
    x = np.random.default_rng(n).normal(size=(3, n, 2))
    expected = scipy.stats.trim_mean(x, 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(x, axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 5, 6, 7, 10])
def test_interquartile_mean_of_any_n_is_that_of_each_value_four_times(n):
    x = np.random.default_rng(n).normal(size=n)
    expected = scipy.stats.trim_mean(np.repeat(x, 4), 0.25)
    np.testing.assert_allclose(interquartile_mean(x), expected, rtol=1e-12)


def test_bootstrap_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval(rng.normal(3.0, 1.0, (300, 24)), axis=1, resamples=400)
    covered = np.mean((low < 3.0) & (high > 3.0))
    assert low.shape == (300,) and 0.89 < covered < 0.98
    # Of the same values, less certainty is a smaller interval, and so are more seeds.
    x = rng.normal(size=40)
    widths = [np.diff(bootstrap_interval(x[:n], level=p)) for n, p in ((40, 0.5), (40, 0.95))]
    assert 0 < widths[0] < widths[1] < np.diff(bootstrap_interval(x[:8]))


def test_bootstrap_interval_repeats_itself_and_knows_nothing_of_one_seed():
    x = np.random.default_rng(0).normal(size=11)
    assert bootstrap_interval(x) == bootstrap_interval(x) != bootstrap_interval(x, seed=1)
    assert bootstrap_interval([4.0]) == (4.0, 4.0)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: interquartile_mean([]), "nothing to average"),
        (lambda: interquartile_mean(np.zeros((2, 0)), axis=1), r"axis 1 of \(2, 0\) is empty"),
        (lambda: bootstrap_interval([]), "nothing to draw from"),
        (lambda: bootstrap_interval([1.0], level=95), "level must be between 0 and 1, got 95"),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples must be at least 1, got 0"),
    ],
)
def test_statistics_of_nothing_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_row_over_seeds_has_intervals_of_results_and_means_of_the_rest():
    rows = [{"loss": x, "test_return": x} for x in (-100.0, 1.0, 3.0, 100.0)]
    rows[2]["train_return"] = 7.0  # no episode ended in the others
    row = over_seeds(rows)
    assert row["loss"] == 1.0 and row["test_return"] == 2.0 and row["train_return"] == 7.0
    assert row["test_return_low"] < 2.0 < row["test_return_high"]
    assert "loss_low" not in row


# ------------------------------------------------------------- a run of several


@contextlib.contextmanager
def compiled_quickly():
    """Most of the time is compilation, and what runs is small."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The smoke preset with three seeds, from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "several"
    seen = types.SimpleNamespace(folder=folder, traces=[])
    chunk, test_metrics, paths_picture = (
        Trainer.chunk,
        Trainer.test_metrics,
        drawing.pictures.paths_picture,
    )

    def chunk_counted(*args, **kwargs):
        seen.traces.append("chunk")
        return chunk(*args, **kwargs)

    def test_counted(*args):
        seen.traces.append("test")
        return test_metrics(*args)

    def paths_seen(*args, about):
        seen.about = about
        return paths_picture(*args, about=about)

    with pytest.MonkeyPatch.context() as patch, compiled_quickly():
        patch.setattr(Trainer, "chunk", chunk_counted)
        patch.setattr(Trainer, "test_metrics", test_counted)
        patch.setattr(drawing.pictures, "paths_picture", paths_seen)
        settings = ["--seeds", "3", "--seed", "1", "--quiet"]
        cli.main(["train", "smoke", "--out", str(folder), *settings])
    seen.summary = json.loads((folder / "summary.json").read_text())
    return seen


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_the_folder_of_several_holds_what_it_should(several):
    names = {"config.json", "metrics.csv", "seeds.csv", "summary.json", "learning_curve.png"}
    names |= {"paths.png", "rollout.gif", "tensorboard", "checkpoints"}
    assert names == {path.name for path in several.folder.iterdir()}
    checkpoints = several.folder / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} == {"final", "step_000000000800"}


def test_several_compile_once(several):
    assert sorted(several.traces) == ["chunk", "test"]


def test_each_of_several_is_the_run_of_its_seed_alone(several):
    trainer = Trainer.build(dataclasses.replace(SMOKE, seed=2))
    with compiled_quickly():
        (n_rounds, _) = SMOKE.chunks
        chunk = jax.jit(functools.partial(trainer.chunk, n_rounds=n_rounds))
        carry, metrics = chunk(trainer.init(jax.random.key(2)))
        tested = jax.jit(trainer.test_metrics)(carry.hierarchy, 0)
    alone = run_module._agent_row(metrics, tested)
    rows = table(several.folder / "seeds.csv")
    assert [(row["env_steps"], row["agent"], row["seed"]) for row in rows] == [
        (steps, str(i), str(i + 1)) for steps in ("800", "1600") for i in range(3)
    ]
    assert float(rows[1]["level0/n_updates"]) > 0
    for name, value in alone.items():
        assert float(rows[1][name]) == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert rows[0]["level0/loss"] != rows[1]["level0/loss"]


def test_metrics_of_several_are_those_of_the_seeds(several):
    seeds = table(several.folder / "seeds.csv")
    rows = table(several.folder / "metrics.csv")
    assert [row["env_steps"] for row in rows] == ["800", "1600"]
    for i, row in enumerate(rows):
        each = seeds[3 * i : 3 * i + 3]
        returns = [float(agent["test_return"]) for agent in each]
        assert float(row["test_return"]) == pytest.approx(interquartile_mean(returns))
        low, high = float(row["test_return_low"]), float(row["test_return_high"])
        assert (low, high) == pytest.approx(bootstrap_interval(returns))
        losses = [float(agent["level0/loss"]) for agent in each]
        assert float(row["level0/loss"]) == pytest.approx(np.mean(losses))
    assert "train_return_low" not in rows[0]  # no episode has ended


def test_the_summary_of_several(several):
    summary = several.summary
    returns, success = summary["return_of_seeds"], summary["success_of_seeds"]
    assert summary["seeds"] == [1, 2, 3] and len(returns) == len(success) == 3
    assert len(set(returns)) == 3 and summary["env_steps"] == 1600
    assert summary["test_return"] == pytest.approx(interquartile_mean(returns))
    assert summary["return_interval"] == pytest.approx(bootstrap_interval(returns))
    assert summary["success_interval"] == pytest.approx(bootstrap_interval(success))
    median = summary["pictured"]
    ranks = sorted(range(3), key=lambda i: (success[i], returns[i]))
    assert median == ranks[1]
    assert several.about.startswith(f"agent {median} (seed {median + 1}), the median of 3")


def test_one_of_several_is_picked_out(several, tmp_path):
    hierarchy, states, env, params = load_run(several.folder)
    for i in range(3):
        alone = load_run(several.folder, seed=i)[1]
        assert alone.n_env_instances == SMOKE.n_env_instances
        same(take_seed(states, i), alone)
    assert int(alone.n_total_env_steps) == 1600
    trainer = Trainer.build(load_config(several.folder))
    # The final test again: agent i is tested as a run of its seed alone would be.
    episodes = episodes_of_a_test(trainer, alone, SMOKE.final_test_episodes, 3)
    mean = float(np.mean(episodes.episode_return))
    assert mean == pytest.approx(several.summary["return_of_seeds"][2], rel=1e-3)
    # A run that was cut off: its last checkpoint that is whole.
    config = (several.folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "checkpoints" / "final.part").mkdir(parents=True)
    step = several.folder / "checkpoints" / "step_000000000800"
    (tmp_path / "checkpoints" / step.name).symlink_to(step)
    assert int(load_run(tmp_path, seed=1)[1].n_total_env_steps) == 800


@pytest.mark.parametrize("seed", [-1, 3])
def test_agents_that_are_not_there_are_refused(several, capsys, seed):
    with pytest.raises(ValueError, match=f"no agent {seed} .* 3 agents, take one from 0 to 2"):
        load_run(several.folder, seed=seed)
    with pytest.raises(SystemExit):
        cli.main(["test", str(several.folder), "--pick", str(seed)])
    assert f"no agent {seed}" in capsys.readouterr().err


def test_the_command_line_tests_several_or_one(several, capsys):
    cli.main(["test", str(several.folder), "--episodes", "3"])
    every = capsys.readouterr().out
    assert "of 3 agents" in every and "interval" in every and "success" in every
    cli.main(["test", str(several.folder), "--episodes", "3", "--pick", "1"])
    one = capsys.readouterr().out
    assert "agent 1: success" in one and "over 3 episodes" in one and "interval" not in one


def test_take_seed_refuses_trees_of_one_agent():
    with pytest.raises(ValueError, match="no leading axis in common"):
        take_seed({"a": np.zeros(3), "b": np.zeros(())}, 0)
    with pytest.raises(ValueError, match="no leading axis in common"):
        take_seed({"a": np.zeros(3), "b": np.zeros(2)}, 0)


# -------------------------------------------------------------------- no success

PENDULUM = TrainConfig(
    levels=(RandomLevel(),),
    env="Pendulum-v1",
    n_env_instances=4,
    total_steps=1600,
    test_interval=800,
    test_episodes=3,
    final_test_episodes=5,
)


@pytest.fixture
def random_pendulum(monkeypatch):
    """A preset without success."""
    monkeypatch.setitem(PRESETS, "pendulum", lambda: PENDULUM)


@pytest.mark.parametrize(
    "env, has", [("Maze2D-Simple-v0", True), ("Pendulum-v1", False), ("CartPole-v1", False)]
)
def test_whether_an_environment_tells_success_is_found_out(env, has):
    trainer = Trainer.build(dataclasses.replace(PENDULUM, env=env))
    assert trainer.has_success is has


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_return_is_spoken_of_where_there_is_nothing_else(
    random_pendulum, tmp_path, capsys, monkeypatch, seeds
):
    folder = tmp_path / "run"
    fetches = []
    fetch, go = jax.device_get, run_module._Loop._chunk

    def counted(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "device_get", lambda x: fetches.append(x) or fetch(x))
            return go(*args)

    monkeypatch.setattr(run_module._Loop, "_chunk", counted)
    cli.main(["train", "pendulum", "--out", str(folder), "--quiet", "--seeds", str(seeds)])
    assert len(fetches) == PENDULUM.n_chunks == 2
    out = capsys.readouterr().out
    assert "success" not in out and "return -" in out
    assert ("+-" in out) == (seeds == 1) and ("interquartile" in out) == (seeds == 2)
    # What is not there is not named.
    files = {line for line in out.splitlines() if line.startswith("in ")}.pop().split(": ")[1]
    assert all((folder / file).exists() for file in files.split(", "))
    assert "paths.png" not in files and ("seeds.csv" in files) == (seeds == 2)

    rows = table(folder / "metrics.csv")
    assert not any("success" in name for name in rows[0])
    assert float(rows[0]["test_return"]) < 0 and float(rows[0]["train_return"]) < 0
    assert ("train_return_low" in rows[0]) == ("test_return_high" in rows[0]) == (seeds == 2)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_success"] is summary["success_of_seeds"] is None
    assert summary["success_interval"] is None and summary["test_return_std"] > 0
    assert (summary["return_interval"] is None) == (seeds == 1)
    picture = imageio.imread(folder / "learning_curve.png")
    assert picture.shape[1] < 1.5 * picture.shape[0]  # one panel

    cli.main(["test", str(folder), "--episodes", "2"])
    out = capsys.readouterr().out
    assert "success" not in out and "return -" in out


def test_a_run_of_one_refuses_to_pick_another(tmp_path):
    config = dataclasses.replace(PENDULUM, total_steps=40)
    summary = lrl.train(config, tmp_path, progress=False)
    assert summary.test_success is None and summary.seeds == (0,)
    assert summary.test_return == summary.return_of_seeds[0]
    same(load_run(tmp_path, seed=0)[1], lrl.load_run(tmp_path)[1])
    with pytest.raises(ValueError, match="the run has 1 agent"):
        load_run(tmp_path, seed=1)
