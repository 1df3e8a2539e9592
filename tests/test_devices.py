"""Meshes: what several devices, or processes, compute is what one device computes."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P
from meshes import (
    ENV,
    PARAMS,
    N,
    distance,
    in_double_precision,
    learner_arrays,
    sac,
    small_config,
    trained,
)

import lrl_jax as lrl
from lrl_jax import buffers, cli, devices
from lrl_jax.collectors import init_carry, rollout, shard
from lrl_jax.levels import ActionRepeatLevel, RandomLevel
from lrl_jax.planners import ICEM
from lrl_jax.training import load_run, preset, with_settings
from lrl_jax.training.sessions import DeviceSession
from lrl_jax.training.train import Trainer

MESHES = (1, 2, 4, 8)


def random_levels():
    return lrl.Hierarchy(
        [RandomLevel(buffer_size=320), ActionRepeatLevel(5, buffer_size=640)], ENV, PARAMS
    )


def values(tree):
    tree = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.device_get(tree)


@pytest.mark.parametrize("n_devices", MESHES)
def test_rollouts_of_random_levels_are_those_of_one_device(n_devices):
    hierarchy = random_levels()
    carry = init_carry(hierarchy, jax.random.key(0), N)
    want = rollout(hierarchy, carry, 40, record=True)
    carry = shard(carry, lrl.make_mesh(n_devices))
    got = rollout(hierarchy, carry, 40, record=True)
    jax.tree.map(np.testing.assert_array_equal, values(got), values(want))
    for level in got[0].hierarchy.levels:
        buffer = level.buffer
        rows = buffer.columns["rew"] if buffer.aligned else buffer.words
        shards = rows.addressable_shards
        assert len({s.device for s in shards}) == n_devices
        # Memory of the buffer falls with the devices.
        assert {s.data.nbytes for s in shards} == {rows.nbytes // n_devices}
        assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(level.learner))


@pytest.fixture(scope="module")
def hierarchy():
    return sac()


@pytest.fixture(scope="module")
def one_update(hierarchy):
    return {n: learner_arrays("one", trained(hierarchy, n, 1)) for n in MESHES}


@pytest.fixture(scope="module")
def fifty_updates(hierarchy):
    return {n: learner_arrays("fifty", trained(hierarchy, n, 50)) for n in MESHES}


@pytest.mark.parametrize("n_devices", [2, 8])
def test_samples_of_rings_that_devices_share(n_devices):
    """The same rows and pieces as from rings on one device: uniform over all of them."""
    rng = np.random.default_rng(0)
    ring = buffers.create({"tag": jnp.int32(0), "truncated": jnp.zeros((), bool)}, N, 8 * N)
    for t in range(6):  # rings of unequal lengths
        tag = t * N + jnp.arange(N, dtype=jnp.int32)
        row = {"tag": tag, "truncated": jnp.asarray(rng.random(N) < 0.2)}
        ring = buffers.add(ring, row, jnp.asarray(rng.random(N) < np.linspace(0.3, 1, N)))

    def draw(ring):
        ids = buffers.sample_ids(ring, jax.random.key(1), 4096)
        pieces = buffers.sample_partial_trajectories(ring, jax.random.key(2), 64, 3)
        return buffers.gather(ring, ids)["tag"], pieces, buffers.gather(ring, pieces[0])["tag"]

    want = jax.device_get(jax.jit(draw)(ring))
    with devices.use(lrl.make_mesh(n_devices)):
        shared = jax.jit(lambda ring: devices.pin(ring, buffers.specs))(ring)
        assert len(shared.words.sharding.device_set) == n_devices
        got = jax.device_get(jax.jit(draw)(shared))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    counts = np.bincount(want[0], minlength=6 * N)
    stored = np.isin(np.arange(6 * N), buffers.stored(ring)["tag"])
    assert (counts[~stored] == 0).all()
    assert scipy.stats.chisquare(counts[stored]).pvalue > 1e-3


@pytest.mark.parametrize("n_devices", MESHES[1:])
def test_the_first_gradients_are_those_of_one_device(one_update, n_devices):
    got, want = (one_update[n]["one_gradient"] for n in (n_devices, 1))
    assert np.linalg.norm(want) > 0
    assert distance(got, want) <= 1e-5


@pytest.mark.parametrize("n_devices", MESHES[1:])
def test_parameters_after_fifty_updates(fifty_updates, one_update, n_devices):
    got, want = (fifty_updates[n]["fifty_parameters"] for n in (n_devices, 1))
    assert distance(want, one_update[1]["one_parameters"]) > 1e-2  # it has learned
    assert distance(got, want) <= 1e-3


@pytest.fixture(scope="module")
def fifty_in_double_precision():
    state = in_double_precision(1)
    assert {x.dtype for x in jax.tree.leaves(state.actor)} == {np.dtype("float64")}
    return learner_arrays("double", state)


@pytest.mark.parametrize(
    "n_devices",
    [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8],
)
def test_parameters_in_double_precision(fifty_in_double_precision, n_devices):
    got = learner_arrays("double", in_double_precision(n_devices))
    want = fifty_in_double_precision["double_parameters"]
    assert distance(got["double_parameters"], want) <= 1e-9


def test_large_leaves_of_learners_are_split(monkeypatch, one_update):
    monkeypatch.setattr(devices, "LARGE_LEAF", 16 * 16)
    got = trained(sac(), 4, 1)
    kernel = got.actor["MLP_0"]["dense_1"]["kernel"]
    assert kernel.sharding.spec == P("instances") and kernel.shape == (16, 16)
    assert got.actor["MLP_0"]["dense_0"]["bias"].sharding.is_fully_replicated
    arrays = learner_arrays("one", got)
    assert distance(arrays["one_parameters"], one_update[1]["one_parameters"]) <= 1e-3


@pytest.mark.parametrize("shape,spec", [((6, 8), P(None, "instances")), ((3, 5), P()), ((4,), P())])
def test_the_largest_axis_that_the_devices_divide_is_split(shape, spec, monkeypatch):
    monkeypatch.setattr(devices, "LARGE_LEAF", 8)
    with devices.use(lrl.make_mesh(4)):
        assert devices.of_learner(jnp.zeros(shape)) == spec


# ------------------------------------------------------------------- training


def test_training_on_a_mesh_is_that_of_one_device(tmp_path):
    summaries = [
        lrl.train(small_config(devices=n), tmp_path / str(n), progress=False) for n in (1, 4)
    ]
    for name in ("env_steps", "test_episodes"):
        assert getattr(summaries[0], name) == getattr(summaries[1], name)
    states = [load_run(tmp_path / str(n))[1] for n in (1, 4)]
    want, got = (learner_arrays("run", state.levels[0].learner.state) for state in states)
    assert distance(got["run_parameters"], want["run_parameters"]) <= 1e-3
    # Replay too: the rows are the same, as nothing was learned in the warm up that made them.
    # Positions are sums and products, which each program rounds in its own way.
    one, mesh = (buffers.stored(state.levels[0].buffer) for state in states)
    for name, rows in one.items():
        first, same = (x.reshape(N, 40, -1)[:, :10] for x in (rows, mesh[name]))
        np.testing.assert_allclose(same, first, rtol=1e-6)


@pytest.mark.slow
def test_planner_over_skills_on_a_mesh():
    """Gates, planning in chunks, predictors and skills; several levels that learn."""
    small = {
        "levels.0.n_updates": 4,
        "levels.0.warm_up_steps": 320,
        "levels.0.no_planning_steps": 320,
        "levels.0.optimizer": ICEM(4, num_samples=16, n_iterations=2, elite_ratio=0.25),
        "levels.0.sb_start_duration": 320,
        "levels.0.predictor_factory.partial_model.hidden": (16,),
        "levels.0.predictor_factory.partial_rew_func.hidden": (16,),
        "levels.1.n_updates": 4,
        "levels.1.warm_up_steps": 320,
        "levels.1.algorithm.hidden": (16,),
        "n_env_instances": N,
        "total_steps": 960,
        "test_interval": 960,
        "test_episodes": 4,
    }
    config = with_settings(preset("maze2d-medium-splates"), small)
    metrics = {}
    for n in (1, 4):
        session = DeviceSession(Trainer.build(dataclasses.replace(config, devices=n)))
        (n_rounds,) = config.chunks
        assert session.compile(n_rounds) > 0
        metrics[n] = jax.device_get(session.advance(n_rounds))
        tested = jax.device_get(session.test(0))
        assert all(np.isfinite(x).all() for x in tested.values())
    for name, value in metrics[1].items():
        np.testing.assert_allclose(metrics[4][name], value, rtol=0.05, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_agents_are_shared_where_they_divide(tmp_path):
    config = dataclasses.replace(small_config(), seeds=2)
    want = lrl.train(config, tmp_path / "one", progress=False)
    split = dataclasses.replace(config, devices=2)
    assert split.seeds_are_split
    got = lrl.train(split, tmp_path / "two", progress=False)
    np.testing.assert_allclose(got.return_of_seeds, want.return_of_seeds, rtol=1e-3)
    for seed in (0, 1):
        states = [load_run(tmp_path / name, seed)[1] for name in ("one", "two")]
        a, b = (learner_arrays("run", s.levels[0].learner.state) for s in states)
        assert distance(b["run_parameters"], a["run_parameters"]) <= 1e-3


# ------------------------------------------------------------------ processes


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.extras  # three programs, each compiled three times
def test_two_processes_learn_what_one_learns(tmp_path, one_update, fifty_updates, request):
    here = Path(__file__).parent
    coordinator = f"127.0.0.1:{free_port()}"
    path = os.pathsep.join([str(here), str(here.parent)])
    environ = {**os.environ, "PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, here / "two_processes.py", coordinator, str(i), tmp_path],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (np.load(tmp_path / f"{i}.npz") for i in (0, 1))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    assert distance(first["one_gradient"], one_update[1]["one_gradient"]) <= 1e-5
    assert distance(first["fifty_parameters"], fifty_updates[1]["fifty_parameters"]) <= 1e-3
    double = request.getfixturevalue("fifty_in_double_precision")
    assert distance(first["double_parameters"], double["double_parameters"]) <= 1e-9
    # One checkpoint, which one process reads; one set of pictures and logs.
    run = tmp_path / "run"
    _, state, _, _ = load_run(run)
    assert int(state.n_total_env_steps) == small_config().total_steps
    assert state.levels[0].buffer.n_env_instances == N
    assert {"config.json", "metrics.csv", "summary.json", "learning_curve.png"} <= set(
        os.listdir(run)
    )


# --------------------------------------------------------------------- errors


def test_bad_meshes():
    with pytest.raises(ValueError, match=r"9 devices.*there are 8.*JAX_NUM_CPU_DEVICES=9"):
        lrl.make_mesh(9)
    for n in (0, True, 2.5):
        with pytest.raises(ValueError, match="whole number"):
            lrl.make_mesh(n)
    carry = init_carry(random_levels(), jax.random.key(0), 6)
    with pytest.raises(ValueError, match=r"6 instances.*4 devices.*n_env_instances=4 or 8"):
        shard(carry, lrl.make_mesh(4))
    with pytest.raises(ValueError, match=r"16 instances.*3 devices.*15 or 18"):
        small_config(devices=3)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--coordinator", "a:1"], "also need --processes, --process-id"),
        (["--coordinator", "a", "--processes", "2", "--process-id", "0"], "HOST:PORT"),
        (["--coordinator", "a:1", "--processes", "1", "--process-id", "0"], "at least 2"),
        (["--coordinator", "a:1", "--processes", "2", "--process-id", "2"], "from 0 to 1"),
        (["--coordinator", "a:1", "--processes", "x", "--process-id", "2"], "whole number"),
        (["--coordinator"], "--coordinator needs HOST:PORT"),
    ],
)
def test_bad_processes(options, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "smoke", *options])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_gets_the_devices_it_asks_for(tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-m", "lrl_jax.cli", "train", "smoke", "--quiet", "--out"]
    alone = subprocess.run([*command, tmp_path / "one"], env=environ, check=True)
    assert alone.returncode == 0
    subprocess.run([*command, tmp_path / "two", "--devices", "2"], env=environ, check=True)
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process-id"]
    both = [
        subprocess.Popen([*command, tmp_path / "both", *several, str(i)], env=environ)
        for i in (0, 1)
    ]
    try:
        assert [process.wait(timeout=900) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    want, *others = (
        load_run(tmp_path / name)[1].levels[0].learner.ps.params["model"]
        for name in ("one", "two", "both")
    )
    for got in others:
        assert distance(got, want) <= 1e-3
