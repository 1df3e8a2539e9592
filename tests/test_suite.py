"""The suite of benchmarks: tasks, agents, runs that go on, tables and figures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops
from benchmarks.suite import __main__ as command
from benchmarks.suite import agents, runs, tables, tasks, tuning
from benchmarks.suite.agents import AGENTS, Agent
from benchmarks.suite.tasks import TASKS, Task
from lrl_jax.algorithms import SAC
from lrl_jax.levels import ActionRepeatLevel, RandomLevel, SACLevel
from lrl_jax.training import TrainConfig

# ---------------------------------------------------------------------- tasks


def test_longest_way():
    layout = ("######", "#....#", "#.##.#", "######")
    lines = [[c == "#" for c in line] for line in layout]
    cell = (1.5, 2.5)
    assert tasks.longest_way(lines, [cell], [(4.5, 2.5)]) == 5  # corners are not cut
    assert tasks.longest_way(lines, [cell, (1.5, 1.5)], [(2.5, 1.5), cell]) == 2
    empty = [[y in (0, 3) or x in (0, 3) for x in range(4)] for y in range(4)]
    assert tasks.longest_way(empty, [(1.5, 1.5)], [(2.5, 2.5)]) == pytest.approx(2**0.5)


def test_horizons_grow():
    horizons = [TASKS[name].horizon for name in ("medium", "large", "giant", "x10", "x30")]
    assert horizons == sorted(horizons) and horizons[3] == pytest.approx(10 * horizons[0], rel=0.01)
    assert TASKS["swimmer"].horizon == 80 < TASKS["swimmer-maze"].horizon


# --------------------------------------------------------------------- agents

TRIAL = {"updates": 2, "width": 256, "gamma": 0.995, "learning_rate": 1e-3, "hindsight": 0.5}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps({name: {"best": TRIAL} for name in ("large", "swimmer")}))
    monkeypatch.setattr(agents, "TUNED", path)


@pytest.mark.parametrize("task", TASKS)
def test_every_agent_is_built_for_every_task(task, tuned):
    for name, agent in AGENTS.items():
        if name == "sac-her-flops":
            continue  # traces the others
        config = agent.build(TASKS[task])
        assert config.env == TASKS[task].env and config.total_steps == TASKS[task].total_steps
        lengths = [level.control_interval for level in config.levels[1:]]
        if name.startswith("planner-"):
            assert lengths == [int(name[8:]) * TASKS[task].fine]
        if name == "splates":
            assert np.prod(lengths) == 10 * TASKS[task].fine


def test_tuned_settings_come_from_the_search(tuned, monkeypatch, tmp_path):
    level = AGENTS["sac-her-tuned"].build(TASKS["medium"]).levels[0]
    plain = AGENTS["sac-her"].build(TASKS["medium"]).levels[0]
    assert level.n_updates == 2 * plain.n_updates and level.hindsight.ratio == 0.5
    assert level.algorithm.hidden == (256, 256) and level.algorithm.gamma == 0.995
    monkeypatch.setattr(agents, "TUNED", tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.suite\.tuning"):
        AGENTS["sac-her-tuned"].build(TASKS["medium"])


def test_trials_are_the_preset_and_draws():
    found = tuning.trials(8)
    assert found[0] == tuning.FIRST and found == tuning.trials(9)[:8]
    everything = tuning.trials(72)
    assert len({json.dumps(trial, sort_keys=True) for trial in everything}) == 72
    with pytest.raises(ValueError, match="at most 72"):
        tuning.trials(73)
    assert all(trial[name] in tuning.SPACE[name] for trial in found for name in tuning.SPACE)


# ---------------------------------------------------------------------- flops


def test_products_are_counted():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert flops.product_flops(jnp.dot, a, b) == 2 * 3 * 4 * 5

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    assert flops.product_flops(loop, jnp.ones((2, 2))) == 7 * 2 * 8
    assert flops.product_flops(jax.vmap(jnp.dot), jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))) == 720


def small(**settings):
    level = SACLevel(
        SAC(hidden=(8,)), buffer_size=100, update_interval=4, n_updates=2, warm_up_steps=32
    )
    settings = {"total_steps": 320, "test_interval": 160, "n_env_instances": 4, **settings}
    return TrainConfig((level,), test_episodes=2, final_test_episodes=2, **settings)


def test_flops_of_a_run():
    flat = flops.of_training(small())[0]
    assert flat.deciding == 2 * 8 * (6 + 2 * 2)
    held = dataclasses.replace(small(), levels=(*small().levels, ActionRepeatLevel(5)))
    upper, lower = flops.of_training(held)
    assert upper.deciding == pytest.approx(flat.deciding / 5) and lower.learning == 0
    assert upper.learning == pytest.approx(flat.learning / 5)
    # Updates are made from the end of the warm up on.
    late = dataclasses.replace(small().levels[0], warm_up_steps=160)
    later = flops.of_training(small_with(late))[0]
    assert later.learning == pytest.approx(flat.learning * (320 - 160) / (320 - 32))


def small_with(level):
    return dataclasses.replace(small(), levels=(level,))


# ----------------------------------------------------------------------- runs


@pytest.fixture
def tiny(monkeypatch):
    def build(task):
        return dataclasses.replace(small(), env=task.env)

    monkeypatch.setitem(TASKS, "tiny", Task("Maze2D-Medium-v0", 320, core=True))
    monkeypatch.setitem(AGENTS, "tiny", Agent("tiny", build))
    return build


def test_missing_runs_are_made_and_kept(tiny, tmp_path, capsys, monkeypatch):
    results, folder = tmp_path / "results", tmp_path / "runs"
    options = ["--tasks", "tiny", "--agents", "tiny", "--results", str(results)]
    options += ["--folder", str(folder)]
    command.main([*options, "--seeds", "1"])
    said = capsys.readouterr().out
    assert "1 of 1: tiny on tiny, seed 0" in said and "**tiny**: Maze2D-Medium-v0" in said
    data = runs.read("tiny", "tiny", results)
    assert [run["seed"] for run in data["seeds"]] == [0] and data["flops_per_step"]
    assert data["seeds"][0]["env_steps"] == 320 and len(data["seeds"][0]["learning_curve"]) == 2
    assert list(runs.missing(["tiny"], ["tiny"], 3, results)) == [
        ("tiny", "tiny", 1),
        ("tiny", "tiny", 2),
    ]
    assert (results / "horizon.png").exists() and (results / "tables.md").exists()
    assert not any(folder.glob("*/*"))
    monkeypatch.setitem(AGENTS, "tiny", Agent("tiny", lambda t: small_with(RandomLevel())))
    with pytest.raises(ValueError, match="other settings"):
        command.main([*options, "--seeds", "2"])


# --------------------------------------------------------------------- tables


def put(results, task, agent, any_step, last):
    held = [
        {
            "seed": i,
            "env_steps": 100,
            "test_success": a,
            "test_success_at_end": b,
            "train_seconds": 2.0,
            "learning_curve": [
                {"env_steps": 50, "test_success": 0.5, "test_success_at_end": 0.0},
                {"env_steps": 100, "test_success": 1.0, "test_success_at_end": 0.5},
            ],
        }
        for i, (a, b) in enumerate(zip(any_step, last, strict=True))
    ]
    path = runs.path_of(task, agent, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    cost = [{"deciding": 1e10, "learning": 2e10}]
    path.write_text(json.dumps({"seeds": held, "flops_per_step": cost}))
    return held


def test_tables(tmp_path):
    held = put(tmp_path, "medium", "splates", [0.9, 1.0, 0.8, 1.0, 0.9], [0.5] * 5)
    put(tmp_path, "medium", "sac", [0.2, 0.4], [0.1, 0.6])
    assert tables.area(held[0], "test_success") == pytest.approx(0.5)
    lines = tables.task_table("medium", tmp_path).splitlines()
    rows = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ")}
    assert "| 5 | 100 | 0.93 [0.8" in rows["planner over skills (SPlaTES)"]
    assert "0.50 [0.50, 0.50] | 0.50 / 0.12 | 2 | 3.0 |" in rows["planner over skills (SPlaTES)"]
    assert "| 2 | 100 | 0.30 | 0.35 |" in rows["SAC"]  # too few seeds for an interval
    assert tables.best("medium", "test_success", True, tmp_path) == "splates"
    assert tables.best("medium", "test_success", False, tmp_path) == "sac"
    assert tables.best("large", "test_success", False, tmp_path) is None
    said = tables.comparison(["medium", "large"], tmp_path).splitlines()
    assert len(said) == 4 and said[2].endswith("| 1.00 |")
    # At the last step: 0.5 beats 0.1 and loses against 0.6.
    assert said[3].endswith("| 0.50 |")


def test_probability_of_improvement():
    assert tables.probability_of_improvement([1, 2], [0, 2]) == (1 + 0 + 1 + 0.5) / 4


def test_taken_together_draws_within_tasks(tmp_path):
    put(tmp_path, "medium", "splates", [1.0] * 5, [0.5] * 5)
    put(tmp_path, "large", "splates", [0.0] * 5, [0.5] * 5)
    put(tmp_path, "medium", "sac", [1.0] * 4, [0.5] * 4)
    found = tables.taken_together(["splates", "sac"], ["medium", "large"], "test_success", tmp_path)
    # Tasks do not mix: every draw holds five of each.
    assert found == {"splates": (0.5, 0.5, 0.5)}
