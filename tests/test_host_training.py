"""Training in Gymnasium environments: the run folder, tests of whole episodes, loading."""

import csv
import dataclasses

import pytest

import lrl_jax as lrl
from lrl_jax import cli
from lrl_jax.algorithms import SAC
from lrl_jax.levels import SACLevel
from lrl_jax.training import TrainConfig, load_config, make_train

CONFIG = TrainConfig(
    levels=(SACLevel(SAC(hidden=(16,)), batch_size=16, warm_up_steps=100, buffer_size=2000),),
    env="gymnasium/Pendulum-v1",
    n_env_instances=2,
    total_steps=800,
    round_ticks=1,
    test_interval=400,
    test_episodes=3,
    final_test_episodes=5,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "host"
    return folder, lrl.train(CONFIG, folder, progress=False)


def test_a_run_on_the_host(finished):
    folder, summary = finished
    assert summary.env_steps == 800 and summary.test_success is None
    assert -2000 < summary.test_return < 0 and summary.test_episodes == 5
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["env_steps"]) for row in rows] == [400, 800]
    # An update a row after the warm up, 100 of the first 400 steps.
    assert float(rows[1]["level0/n_updates"]) == 400
    assert float(rows[0]["level0/n_updates"]) in (300, 302)
    assert load_config(folder) == CONFIG.resolved()


def test_it_can_be_loaded_and_tested_again(finished, capsys):
    folder, summary = finished
    hierarchy, state, env, params = lrl.load_run(folder)
    assert params is None and env.num_envs == 2
    assert int(state.n_total_env_steps) == 800
    cli.main(["test", str(folder), "--episodes", "5"])
    assert f"{summary.test_return:.1f}" in capsys.readouterr().out


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize(
    "env", ["gymnasium/Pendulum-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)]
)
def test_a_run_with_workers(tmp_path, env):
    pytest.importorskip("ray")
    config = dataclasses.replace(CONFIG, env=env, workers=2, round_ticks=10)
    summary = lrl.train(config, tmp_path / "run", progress=False)
    assert summary.env_steps == 800 and -2000 < summary.test_return < 0
    hierarchy, state, _, _ = lrl.load_run(tmp_path / "run")
    rows = lrl.buffers.stored(state.levels[0].buffer)
    assert len(rows["rew"]) == 800 and set(rows["instance"]) == {0, 1}
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    # One update a row from the round of 20 on that ends the warm up of 100 steps.
    assert [float(row["level0/n_updates"]) for row in table] == [320, 400]


def test_what_workers_cannot_do_is_refused():
    with pytest.raises(ValueError, match="workers=2 with devices=1 and 2 agents"):
        dataclasses.replace(CONFIG, workers=2, seeds=2)
    with pytest.raises(ValueError, match="multiple of 3"):
        dataclasses.replace(CONFIG, workers=3)


def test_what_the_host_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be traced"):
        make_train(CONFIG)
    with pytest.raises(ValueError, match="2 agents .*train one after another"):
        lrl.train(dataclasses.replace(CONFIG, seeds=2), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Exception, match="NoSuchEnv"):
        lrl.make("gymnasium/NoSuchEnv-v0")
