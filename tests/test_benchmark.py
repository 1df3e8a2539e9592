"""The benchmark helper, and one tiny run of each benchmark."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

import benchmarks
import lrl_jax as lrl
from benchmarks import __main__ as command
from benchmarks import (
    collecting,
    failures,
    gating,
    learners,
    main_job,
    planning,
    predictor,
    skills,
    success_over_seeds,
    throughput,
)
from lrl_jax import benchmark
from lrl_jax.training import preset, with_settings

TINY = {"num_samples": 16, "n_iterations": 1, "horizon": 3, "elite_ratio": 0.25}


def test_compiles_apart_and_interleaves():
    traces, order = [], []

    def slow(x):
        order.append("slow")
        time.sleep(0.02)
        return x

    def fast(x):
        order.append("fast")
        return x

    x = jnp.ones(3)
    timings = benchmark.compare({"slow": (slow, (x,)), "fast": (fast, (x,))}, 3, jit=False)
    assert order[-6:] == ["slow", "fast"] * 3
    assert timings["slow"].median >= 0.02 > timings["fast"].median
    assert len(timings["slow"].repeats) == 3
    assert timings["slow"].rate(2.0) == 2.0 / timings["slow"].median
    assert jax.devices()[0].device_kind in timings["slow"].device

    def traced(x):
        traces.append(None)
        time.sleep(0.05)
        return x + 1

    timing = benchmark.compare({"a": (traced, (x,))}, 2, min_seconds=0.001)["a"]
    assert len(traces) == 1
    assert timing.compile_seconds >= 0.05 > timing.median


@pytest.mark.parametrize(
    "functions, settings, message",
    [
        ({}, {}, "no function"),
        ({"a": (abs, (1,))}, {"repeats": 0}, "repeats"),
        ({"a": (abs, (1,))}, {"min_seconds": -1.0}, "min_seconds"),
    ],
)
def test_wrong_inputs(functions, settings, message):
    with pytest.raises(ValueError, match=message):
        benchmark.compare(functions, **settings)


def timing(*repeats):
    return benchmark.Timing(0.0, sorted(repeats)[len(repeats) // 2], repeats, "cpu")


def test_ratios_bars_and_table():
    timings = {"a": timing(2.0, 4.0, 9.0), "b": timing(1.0, 2.0, 3.0)}
    assert benchmarks.slower(timings, "a", "b") == 2.0
    rows = [
        benchmarks.Row("kept", timings["a"], 10, "steps", 0.95, "bare", 0.9, at_most=False),
        benchmarks.Row("over", timings["a"], 10, "steps", 1.4, "bare", 1.3, note="why"),
        benchmarks.Row("free", timings["b"]),
    ]
    assert [row.met for row in rows] == [True, False, None]
    text = benchmarks.table(rows)
    assert "ok" in text and "missed" in text and text.endswith("why")
    assert rows[0].as_json()["rate"] == 2.5


def check(rows, n_ratios):
    assert sum(row.ratio is not None for row in rows) == n_ratios
    assert all(row.timing.median > 0 and (row.ratio is None or row.ratio > 0) for row in rows)


def test_throughput():
    check(throughput.measure("MountainCarContinuous-v0", 2, 8, 1, 0.0), 4)


def test_gating_makes_the_same_plans_in_and_out_of_phase():
    search = {"num_samples": 8, "n_iterations": 1, "horizon": 2, "elite_ratio": 0.25}
    rows = gating.phases(10, 20, 1, hidden=(8,), **search)
    check(rows, 1)
    assert [row.work for row in rows] == [20, 20]
    check(gating.seeds(2, 3, 1, hidden=(8,), **search), 1)


def test_predictor():
    small = predictor.build((8,))
    check(predictor.targets(small, 8, 3, 3, 2, 1), 1)
    check(predictor.updates(small, 8, 16, 2, 1), 1)


def test_planning():
    check(planning.measure(3, 1, **TINY), 1)


def test_learners(monkeypatch):
    monkeypatch.setattr(learners, "SIZE", 16)
    check(learners.sac_update(2, 1), 1)
    # 16 passes through a hidden product of 256^3, and what the thin layers add.
    flops = learners.sac_flops(256, 256, 4, 2)
    assert 1.0 < flops / (16 * 2 * 256**3) < 1.08
    small = {
        "levels.0.algorithm.hidden": (8,),
        "levels.0.warm_up_steps": 0,
        "n_env_instances": 2,
        "total_steps": 32,
        "test_interval": 32,
    }
    row = learners.learning(with_settings(preset("cartpole-dqn"), small), "dqn", 2, 1)
    assert row.work == 64 and row.timing.median > 0


def test_main_job():
    assert main_job.measure(preset("smoke"), "smoke", 320, 1)[0].timing.median > 0


def test_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    rows = [benchmarks.Row("case", timing(1.0))]
    monkeypatch.setattr(planning, "run", lambda quick: rows)
    out = tmp_path / "new" / "out.json"
    command.main(["planning", "--quick", "--out", str(out)])
    data = json.loads(out.read_text())
    assert data["benchmarks"]["planning"][0]["case"] == "case" and data["quick"]
    assert {"date", "device", "versions", "cpu_count", "command"} <= set(data)
    assert "case" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["flying"])


def reached(seed, **more):
    return {
        "seed": seed,
        "env_steps": 10,
        "test_return": -10.0 * seed,
        "test_episodes": 4,
        "learning_curve": [],
        **more,
    }


def test_success_over_seeds_keeps_each_seed(tmp_path, monkeypatch):
    def one_seed(config, progress):
        if config.seed == 2:
            raise KeyboardInterrupt
        times = {"train_seconds": 1.0 + config.seed, "steps_per_second": 10.0}
        return reached(config.seed, test_success=0.5 + 0.25 * config.seed, **times)

    monkeypatch.setattr(success_over_seeds, "one_seed", one_seed)
    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        success_over_seeds.measure("smoke", range(3), out)
    data = json.loads(out.read_text())
    assert [result["seed"] for result in data["seeds"]] == [0, 1]
    summary = data["summary"]
    assert summary["worst_success"] == 0.5 and summary["worst_return"] == -10.0
    assert summary["mean_success"] == summary["interquartile_mean_success"] == 0.625
    assert summary["interval_return"] == [-10.0, 0.0]
    assert summary["mean_train_seconds"] == 1.5 and summary["longest_train_seconds"] == 2.0


def test_success_over_seeds_in_one_call_and_without_success(tmp_path, monkeypatch, capsys):
    configs = []

    def all_seeds(config, progress):
        configs.append(config)
        return [reached(i) for i in range(config.seeds)], {"train_seconds_together": 7.0}

    monkeypatch.setattr(success_over_seeds, "all_seeds", all_seeds)
    monkeypatch.setattr(success_over_seeds, "RESULTS", tmp_path)
    args = ["--preset", "smoke", "--seeds", "3", "--vmapped", "--total-steps", "800"]
    success_over_seeds.main(args)
    assert [(c.seed, c.seeds, c.total_steps) for c in configs] == [(0, 3, 800)]
    data = json.loads((tmp_path / "success-smoke-vmapped-800.json").read_text())
    assert data["vmapped"] and data["config"]["seeds"] == 3 and len(data["seeds"]) == 3
    assert data["summary"]["mean_return"] == -10.0
    assert data["summary"]["train_seconds_together"] == 7.0
    assert not any("success" in name for name in data["summary"])
    out = capsys.readouterr().out
    assert "success:" not in out and "return: mean -10.0" in out and "7 s of training" in out
    with pytest.raises(ValueError, match=r"consecutive, got \[0, 2\]"):
        success_over_seeds.measure("smoke", [0, 2], vmapped=True)


def test_results_written_before_are_still_summarised():
    path = success_over_seeds.RESULTS / "success-maze2d-medium-planner.json"
    data = json.loads(path.read_text())
    summary = success_over_seeds.summarise(data["seeds"])
    assert data["summary"] == {name: summary[name] for name in data["summary"]}


def test_collecting():
    check(collecting.host(2, 5, 1, 0.5), 1)


def test_studies_of_skills(tmp_path, monkeypatch):
    """What a study writes, with the training left out."""
    monkeypatch.setitem(
        skills.STUDIES,
        "dads",
        lambda seed: {"dads": {"seed": seed, "success": 0.5 + seed, "quality": {"phi": 1.0}}},
    )
    out = tmp_path / "out.json"
    skills.measure("dads", [0, 1], out)
    data = json.loads(out.read_text())
    expected = {"mean": 1.0, "least": 0.5, "most": 1.5, "seeds": 2}
    assert data["summary"]["dads"]["success"] == expected
    assert data["summary"]["dads"]["quality.phi"]["mean"] == 1.0 and len(data["seeds"]) == 2
    assert "seed" not in data["summary"]["dads"]
    # A later seed is added; what only it has is in the summary, too.
    monkeypatch.setitem(skills.STUDIES, "dads", lambda seed: {"dads": {"seed": seed, "more": 3}})
    skills.measure("dads", [2], out)
    data = json.loads(out.read_text())
    assert [each["dads"]["seed"] for each in data["seeds"]] == [0, 1, 2]
    assert data["summary"]["dads"]["success"] == expected and len(data["earlier"]) == 1
    assert data["summary"]["dads"]["more"] == {"mean": 3, "least": 3, "most": 3, "seeds": 1}


def test_ablations_change_what_they_name():
    whole = preset("maze2d-medium-splates")
    changed = [with_settings(whole, changes) for changes in skills.ABLATIONS.values()]
    assert changed[0] == whole and len(set(changed)) == len(changed)


def test_shortest_paths_and_how_episodes_end():
    env, _ = lrl.make("Maze2D-Large-v0")
    lengths = failures.path_lengths(env.layout)
    assert lengths[1, 1][1, 1] == 0 and lengths[1, 1][2, 1] == 1 == lengths[2, 1][1, 1]
    assert max(max(row.values()) for row in lengths.values()) == 19
    # One walks to its goal, one stands behind the wall beside it.
    goals = np.array([[2.5, 1.5], [6.5, 1.5]])
    start = np.array([[1.5, 1.5], [4.5, 1.5]])
    positions = np.repeat(start[None], 200, 0)
    positions[50:, 0] = goals[0]
    said = failures.describe(env, positions, goals)
    assert said["success"] == 0.5 and said["by_shortest_path"][0]["steps_to_goal"] == 50
    assert said["failures"]["episodes"] == said["failures"]["stuck_at_the_end"] == 1
    assert said["failures"]["behind_a_wall"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("study", ["medium", "dads", "predictability", "three-levels"])
def test_studies_train(study, monkeypatch):
    def small(name, seed):
        run = {"n_env_instances": 8, "round_ticks": 10, "total_steps": 1600, "test_interval": 1600}
        return tiny(name, seed=seed, **run)

    monkeypatch.setattr(skills, "_preset", small)
    monkeypatch.setattr(skills, "EPISODES", 2)
    data = skills.measure(study, [0], None)
    for result in data["summary"].values():
        assert 0 <= result["success"]["mean"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("vmapped", [False, True])
def test_success_over_seeds_trains(vmapped):
    data = success_over_seeds.measure("smoke", range(2), vmapped=vmapped, total_steps=800)
    assert [result["seed"] for result in data["seeds"]] == [0, 1]
    for result in data["seeds"]:
        (row,) = result["learning_curve"]
        assert set(row) >= {"env_steps", "test_success", "test_return"}
        assert result["env_steps"] == 800 and 0 <= result["test_success"] <= 1
    assert ("train_seconds_together" in data["summary"]) == vmapped
