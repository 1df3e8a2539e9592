"""What takes one line: printing, comparing, showing, the best checkpoint, stopping at a target."""

import dataclasses
import json
import re

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import RANDOM

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.algorithms import SAC
from lrl_jax.hierarchies.printing import n_parameters
from lrl_jax.levels import ActionRepeatLevel, Decision, Level, SACLevel
from lrl_jax.loggers import CSV
from lrl_jax.training import load_trainer, report
from lrl_jax.training.folder import locked
from lrl_jax.training.sessions import Session

CONFIG = dataclasses.replace(RANDOM, total_steps=40)


def scripted_tests(monkeypatch, returns, successes=None):
    """Interim tests that say what they are told."""

    def test(self, i):
        row = {"test_return": returns[i], "test_return_std": 0.0}
        return row if successes is None else row | {"test_success": successes[i]}

    monkeypatch.setattr(Session, "test", test)
    monkeypatch.setattr("lrl_jax.training.run._postfix", lambda row: "")


def steps_of(run, checkpoint=None):
    _, state = load_trainer(run, checkpoint=checkpoint)
    return int(state.n_total_env_steps)


# -------------------------------------------------------------- the best checkpoint


def test_the_best_checkpoint_is_kept_and_a_run_can_go_back_to_it(tmp_path, monkeypatch):
    scripted_tests(monkeypatch, [-5.0, np.nan, -1.0, -3.0, -1.0])
    run = tmp_path / "run"
    config = dataclasses.replace(CONFIG, save_best=True)
    lrl.train(config, run, False)
    assert steps_of(run, "best") == 24  # the first of two that are alike
    assert steps_of(run) == steps_of(run, "final") == 40
    again = lrl.train(None, run, False, resume=True)
    assert again.env_steps == 40  # it has ended
    rows = []
    lrl.train(
        None, run, False, resume=True, checkpoint="best", callbacks=[lambda *x: rows.append(x[0])]
    )
    assert rows == [32, 40] and steps_of(run) == 40 and steps_of(run, "best") == 24


def test_success_comes_before_return_and_a_killed_run_goes_on_from_its_best(tmp_path, monkeypatch):
    scripted_tests(monkeypatch, [-1.0, -9.0, -8.0, -7.0, 0.0], [0.0, 0.5, 0.5, 0.4, 0.5])
    run = tmp_path / "run"
    config = dataclasses.replace(CONFIG, save_best=True, checkpoint_interval=0)

    def kill(env_steps, state, row):
        if env_steps == 32:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        lrl.train(config, run, False, callbacks=[kill])
    assert steps_of(run) == steps_of(run, "best") == 24
    rows = []
    lrl.train(None, run, False, resume=True, callbacks=[lambda *x: rows.append(x[0])])
    assert rows == [32, 40] and steps_of(run, "best") == 40


def test_without_a_best_checkpoint_it_is_said_why(tmp_path):
    run = tmp_path / "run"
    lrl.train(dataclasses.replace(CONFIG, total_steps=8), run, False)
    with pytest.raises(FileNotFoundError, match="save_best=True"):
        lrl.load_run(run, checkpoint="best")
    with pytest.raises(FileNotFoundError, match="save_best=True"):
        lrl.train(None, run, False, resume=True, checkpoint="best")
    with pytest.raises(ValueError, match="resume=True"):
        lrl.train(CONFIG, tmp_path / "other", False, checkpoint="best")
    assert (run / "summary.json").is_file()


# ------------------------------------------------------------------------ a target


def test_a_run_stops_at_its_target_and_stays_stopped(tmp_path, monkeypatch):
    scripted_tests(monkeypatch, [-5.0, -2.0, -4.0, -1.0, -3.0])
    run = tmp_path / "run"
    config = dataclasses.replace(CONFIG, stop_at=-2)
    summary = lrl.train(config, run, False)
    assert summary.env_steps == 16 and summary.stopped_at == -2.0
    assert lrl.train(None, run, False, resume=True) == summary
    higher = dataclasses.replace(config, stop_at=-1.5)
    assert lrl.train(higher, run, False, resume=True).env_steps == 32
    assert lrl.train(CONFIG, run, False, resume=True).stopped_at is None
    assert steps_of(run) == 40


def test_the_target_is_of_success_where_the_environment_tells_it(tmp_path, monkeypatch):
    scripted_tests(monkeypatch, [5.0] * 5, [0.1, 0.3, 0.6, 0.2, 0.9])
    summary = lrl.train(dataclasses.replace(CONFIG, stop_at=0.5), tmp_path / "run", False)
    assert summary.env_steps == 24 and summary.stopped_at == 0.6


@pytest.mark.parametrize(("name", "value"), [("stop_at", "0.5"), ("stop_at", np.nan)])
def test_a_target_is_a_number(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        dataclasses.replace(CONFIG, **{name: value})


# ------------------------------------------------------------------------ printing


def small_hierarchy():
    level = SACLevel(SAC(hidden=(8,)), buffer_size=4096)
    maze, params = lrl.make("Maze2D-Medium-v0")
    return lrl.Hierarchy([level, ActionRepeatLevel(10)], maze, params, frozen=[1])


def test_a_hierarchy_prints_its_stack():
    hierarchy = small_hierarchy()
    title, heading, first, second = str(hierarchy).splitlines()
    assert title == "Hierarchy of Maze2D, train mode" and "eval" in str(hierarchy.eval())
    assert heading.split()[:3] == ["level", "sees", "input"]
    learner = hierarchy.init(jax.random.key(0), 1).levels[0].learner
    state = learner.state
    n = sum(x.size for x in jax.tree.leaves((state.actor, state.critics, state.log_temperature)))
    for words in ("SACLevel", "10 steps", "4,096 rows", f"{n:,}", "Box[2] in [-1, 1]"):
        assert words in first
    assert "ActionRepeatLevel (frozen)" in second and second.split()[-1] == "-"


@dataclasses.dataclass(frozen=True)
class Own(Level):
    """A level with an optimiser of optax, a target network and settings."""

    def init_learner(self, key, spec):
        params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
        return {
            "params": params,
            "target": jax.tree.map(jnp.copy, params),
            "moments": optax.adam(1e-3).init(params),
            "settings": {"epsilon": jnp.float32(0.1)},
            "count": jnp.int32(0),
        }

    def act(self, learner, memory, obs, ctx):
        return Decision(jnp.zeros(2), memory)


def test_parameters_of_own_levels_are_counted_once():
    hierarchy = lrl.Hierarchy([Own()], *lrl.make("Maze2D-Medium-v0"))
    assert str(hierarchy).splitlines()[2].split()[-1] == "8"
    assert n_parameters(()) == 0


def test_statistics_print_as_a_short_table():
    env, params = lrl.make("Maze2D-Medium-v0", max_steps=4)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params), n_env_instances=2)
    stats = collector.collect(n_steps=8)
    lines = {line[:16].strip(): line[16:].strip() for line in str(stats).splitlines()}
    assert lines["episodes"] == "4" and lines["steps"] == "16"
    low, high = stats.returns.min(), stats.returns.max()
    assert lines["return"].startswith(f"{stats['return']:.3f} +- ") and "success" in lines
    assert lines["return"].endswith(f"({low:.3f} to {high:.3f})") and low < high
    assert len(lines) < 12
    assert "None" not in str(collector.collect(n_steps=1))  # in which no episode ended
    assert repr(collector.hierarchy) == "<Hierarchy [RandomLevel] of Maze2D, train mode>"
    assert "Collector of 2 instances" in repr(collector) and "18 steps" in repr(collector)


def test_episodes_print_as_a_short_table():
    env, params = lrl.make("Maze2D-Medium-v0", max_steps=4)
    hierarchy = lrl.RandomHierarchy(env, env_params=params)
    state = hierarchy.init(jax.random.key(0), 1)
    played = lrl.evaluate(hierarchy, state, jax.random.key(0), 4)
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in str(played).splitlines())
    assert lines["episodes"] == "4" and lines["success at end"] == "0.000"
    assert lines["return"].startswith(f"{float(played.episode_return.mean()):.3f} +- ")
    assert "unfinished" not in lines
    cut = played.replace(finished=jnp.array([True, False, True, True]))
    assert "unfinished      1" in str(cut) and str(cut).startswith("episodes        3")
    jax.jit(lambda episodes: str(episodes) and episodes)(played)  # nothing to print: no error


def test_a_progress_bar_shows_return_and_success(capsys):
    env, params = lrl.make("Maze2D-Medium-v0", max_steps=4)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params), n_env_instances=2)
    collector.collect(n_steps=9, verbose=True, test_interval=8, n_test_steps=4)
    shown = capsys.readouterr().err
    for word in (r"[ ,]return=-", r"[ ,]success=0", r"test_return=-", r"test_success=0"):
        assert re.search(word, shown), shown


# ------------------------------------------------------------- comparing and showing


def write_run(folder, returns, success=None, seeds=None, **config):
    """A run folder as training leaves it, without training."""
    folder.mkdir(parents=True)
    fields = {"env": "Pendulum-v1", "total_steps": 40, "levels": [], "sweep": []} | config
    (folder / "config.json").write_text(json.dumps({"format": 2, "config": fields}))
    table = CSV(folder / "metrics.csv")
    for i, value in enumerate(returns):
        more = {} if success is None else {"test_success": success[i]}
        table.log(8 * (i + 1), {"test_return": value, **more})
    if seeds is not None:
        CSV(folder / "seeds.csv").add(
            {"env_steps": 8 * (i + 1), "agent": j, **more, "test_return": value}
            for j, (more, values) in enumerate(seeds)
            for i, value in enumerate(values)
        )
    return folder


def test_runs_are_compared_in_a_table_and_a_figure(tmp_path, capsys):
    a = write_run(tmp_path / "a", [-4.0, -2.0, -3.0])
    seeds = [({}, [-9.0, -5.0]), ({}, [-7.0, -1.0])]
    b = write_run(tmp_path / "b", [-8.0, -3.0], seeds=seeds)
    figure = tmp_path / "new" / "figure.png"
    cli.main(["compare", str(a), str(b), "--out", str(figure)])
    heading, first, second, *_ = capsys.readouterr().out.splitlines()
    assert "last return" in heading and "best return" in heading
    assert first.split()[:6] == ["a", "Pendulum-v1", "1", "24", "-3.000", "-2.000"]
    assert second.split()[:4] == ["b", "Pendulum-v1", "2", "16"]
    assert "-3.000 [-5.000, -1.000]" in second
    assert imageio.imread(figure).ndim == 3


def test_seeds_are_drawn_as_mean_and_range(tmp_path):
    seeds = [({}, [-9.0, -5.0]), ({}, [-7.0, -1.0])]
    comparison = lrl.compare(write_run(tmp_path / "b", [-8.0, -3.0], seeds=seeds))
    steps, values = comparison.curves[0].values("test_return")
    assert steps.tolist() == [8, 16] and values.tolist() == [[-9.0, -5.0], [-7.0, -1.0]]
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lrl_jax.training.comparing.save_curves",
            lambda figure, path, title: drawn.update(ax=figure.axes[0]),
        )
        comparison.draw(tmp_path / "x.png")
    ax = drawn["ax"]
    assert ax.lines[0].get_ydata().tolist() == [-8.0, -3.0]
    (shade,) = ax.collections
    assert shade.get_paths()[0].get_extents().bounds == (8.0, -9.0, 8.0, 8.0)
    assert ax.get_legend().get_texts()[0].get_text() == "b (2 agents)"


def test_success_is_compared_where_all_runs_tell_it(tmp_path):
    told = write_run(tmp_path / "a", [-4.0], success=[0.5])
    alike = write_run(tmp_path / "other" / "a", [-4.0], success=[0.7])
    untold = write_run(tmp_path / "b", [-4.0])
    assert lrl.compare(told, alike).measure == "test_success"
    assert lrl.compare(told, untold).measure == "test_return"
    labels = [curve.label for curve in lrl.compare(told, alike).curves]
    assert labels == [str(told), str(alike)]  # their names are the same
    with pytest.raises(ValueError, match=r"b has no test_success: it has .*test_return"):
        lrl.compare(told, untold, measure="test_success")


def test_each_combination_of_a_sweep_is_a_curve(tmp_path):
    path = "levels.0.learning_rate"
    seeds = [({path: 0.1}, [1.0]), ({path: 0.1}, [2.0]), ({path: 0.2}, [5.0])]
    run = write_run(tmp_path / "s", [2.0], seeds=seeds, sweep=[[path, [0.1, 0.2]]])
    curves = lrl.compare(run).curves
    assert [curve.label for curve in curves] == [f"s, {path}=0.1", f"s, {path}=0.2"]
    assert [curve.agents for curve in curves] == [(0, 1), (2,)]


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="nothing to compare"):
        lrl.compare()
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(tmp_path)])
    assert ended.value.code == 2 and "not a run folder" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no interim test yet"):
        lrl.compare(write_run(tmp_path / "a", []))


def test_a_run_is_shown(tmp_path, capsys):
    run = tmp_path / "run"
    lrl.train(dataclasses.replace(CONFIG, total_steps=16, save_best=True, seed=3), run, False)
    cli.main(["show", str(run)])
    text = capsys.readouterr().out
    for words in (
        "Pendulum-v1, finished after 16 of 16 environment steps",
        "RandomLevel",
        "Box[3]",
        "save_best",
        "last of 2 interim tests",
        "best checkpoint:",
        "final test",
        "metrics.csv",
        f"lrl-jax resume {run} --total-steps N",
        f"lrl-jax test {run}",
    ):
        assert words in text, words
    assert "test_interval" in text and "frozen" not in text
    with locked(run):
        assert "training; the last checkpoint is after 16 of 16" in report(run)
    assert not (run / ".lock").exists()
    (run / "summary.json").unlink()
    assert "stopped after 16 of 16" in report(run)


def test_a_run_of_unknown_classes_is_shown_without_spaces(tmp_path):
    run = write_run(tmp_path / "run", [-1.0], levels=[{"class": "Mine", "n": 3}])
    text = report(run)
    assert "0  Mine" in text and "stopped before its first checkpoint" in text
    assert "Mine is not known" in text or "spaces are not shown" in text


def test_a_summary_prints_what_was_reached(tmp_path):
    summary = lrl.train(dataclasses.replace(CONFIG, total_steps=8), tmp_path / "run", False)
    first, second = str(summary).splitlines()
    assert first.startswith(f"return {summary.test_return:.1f} +- ")
    assert "over 2 test episodes after 8 environment steps" in first and "training took" in second


SEVEN_LINES = """
import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import SACLevel

level = SACLevel(SAC(hidden=(8,)), buffer_size=64, batch_size=8)
config = lrl.TrainConfig((level,), "Pendulum-v1", total_steps=640)
summary = lrl.train(config, "runs/pendulum", progress=False)
print(summary)
"""
ONE_LINE_EACH = """
agent, state, env, params = lrl.load_run("runs/pendulum")
print(lrl.evaluate(agent, state, jax.random.key(0), 8, max_steps=4).episode_return.mean())
agent.save(state, "checkpoint")
state = agent.load("checkpoint")
lrl.compare("runs/pendulum").draw("curve.png")
"""


def test_training_takes_seven_lines_and_the_rest_one_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len([line for line in SEVEN_LINES.splitlines() if line]) == 7
    names = {"jax": jax}
    exec(SEVEN_LINES, names)
    exec(ONE_LINE_EACH, names)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("return -") and float(last) < 0
    assert (tmp_path / "curve.png").is_file() and (tmp_path / "checkpoint").is_dir()
