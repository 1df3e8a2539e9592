"""Meshes: what several devices compute is what one computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import lrl_jax as lrl
from lrl_jax import devices
from lrl_jax.algorithms import SAC
from lrl_jax.collectors import init_carry, rollout, shard
from lrl_jax.levels import ActionRepeatLevel, RandomLevel, SACLevel

ENV, PARAMS = lrl.make("Maze2D-Medium-v0")
N = 16
MESHES = (1, 2, 4, 8)


def random_levels():
    return lrl.Hierarchy(
        [RandomLevel(buffer_size=320), ActionRepeatLevel(5, buffer_size=640)], ENV, PARAMS
    )


def sac(**settings):
    level = SACLevel(
        SAC(hidden=(16, 16)), batch_size=64, buffer_size=3200, warm_up_steps=0, **settings
    )
    return lrl.Hierarchy([level], ENV, PARAMS)


def carry_of(hierarchy, n_devices, seed=0):
    carry = init_carry(hierarchy, ENV, PARAMS, jax.random.key(seed), N)
    return shard(carry, lrl.make_mesh(n_devices))


def values(tree):
    tree = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.device_get(tree)


@pytest.mark.parametrize("n_devices", MESHES)
def test_rollouts_of_random_levels_are_those_of_one_device(n_devices):
    hierarchy = random_levels()
    plain = init_carry(hierarchy, ENV, PARAMS, jax.random.key(0), N)
    want = rollout(hierarchy, ENV, PARAMS, plain, 40, record=True)
    got = rollout(hierarchy, ENV, PARAMS, carry_of(hierarchy, n_devices), 40, record=True)
    jax.tree.map(np.testing.assert_array_equal, values(got), values(want))


@pytest.mark.parametrize("n_devices", MESHES)
def test_memory_of_the_buffer_falls_with_the_devices(n_devices):
    hierarchy = random_levels()
    carry, _ = rollout(hierarchy, ENV, PARAMS, carry_of(hierarchy, n_devices), 10)
    for level in carry.hierarchy.levels:
        shards = level.buffer.words.addressable_shards
        assert len({s.device for s in shards}) == n_devices
        assert {s.data.nbytes for s in shards} == {level.buffer.words.nbytes // n_devices}
        learner = jax.tree.leaves(level.learner)
        assert all(x.sharding.is_fully_replicated for x in learner)


def trained(hierarchy, n_devices, ticks, cast=None):
    carry = carry_of(hierarchy, n_devices)
    if cast is not None:
        carry = carry.replace(hierarchy=cast(carry.hierarchy))
    carry, _ = rollout(hierarchy, ENV, PARAMS, carry, ticks, learn=True, learn_interval=ticks)
    return carry.hierarchy.levels[0].learner.state


def distance(a, b):
    """Relative distance of two trees in the Euclidean norm."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def one_update():
    # 10 ticks of 16 instances owe one update; Adam's first moment then is a tenth of the gradient.
    hierarchy = sac(update_interval=160)
    return {n: jax.device_get(trained(hierarchy, n, 10)) for n in MESHES}


@pytest.mark.parametrize("n_devices", MESHES[1:])
@pytest.mark.parametrize("part", ["actor_opt", "critic_opt"])
def test_the_first_gradients_are_those_of_one_device(one_update, n_devices, part):
    got, want = (getattr(one_update[n], part).mu for n in (n_devices, 1))
    assert np.linalg.norm(np.concatenate([np.ravel(x) for x in jax.tree.leaves(want)])) > 0
    assert distance(got, want) <= 1e-5


def test_parameters_after_fifty_updates():
    hierarchy = sac(update_interval=160, n_updates=50)
    want = trained(hierarchy, 1, 10)
    start = carry_of(hierarchy, 1).hierarchy.levels[0].learner.state
    for n_devices in MESHES[1:]:
        got = trained(hierarchy, n_devices, 10)
        for part in ("actor", "critics", "target_critics"):
            a, b, old = (jax.device_get(getattr(x, part)) for x in (got, want, start))
            assert distance(a, b) <= 1e-3
            assert part == "target_critics" or distance(b, old) > 1e-2  # it has learned


def test_large_leaves_of_learners_are_split(monkeypatch):
    hierarchy = sac(update_interval=160)
    want = trained(hierarchy, 1, 10)
    monkeypatch.setattr(devices, "LARGE_LEAF", 16 * 16)
    split = sac(update_interval=160)
    got = trained(split, 4, 10)
    kernel = got.actor["MLP_0"]["dense_1"]["kernel"]
    assert kernel.sharding.spec == P("instances") and kernel.shape == (16, 16)
    assert got.actor["MLP_0"]["dense_0"]["bias"].sharding.is_fully_replicated
    assert distance(jax.device_get(got.actor), jax.device_get(want.actor)) <= 1e-3


@pytest.mark.parametrize("shape,spec", [((6, 8), P(None, "instances")), ((3, 5), P()), ((4,), P())])
def test_the_largest_axis_that_the_devices_divide_is_split(shape, spec, monkeypatch):
    monkeypatch.setattr(devices, "LARGE_LEAF", 8)
    with devices.use(lrl.make_mesh(4)):
        assert devices.of_learner(jnp.zeros(shape)) == spec


def test_bad_meshes():
    with pytest.raises(ValueError, match="9 devices.*there are 8.*jax_num_cpu_devices"):
        lrl.make_mesh(9)
    for n in (0, True, 2.0):
        with pytest.raises(ValueError, match="whole number"):
            lrl.make_mesh(n)
    carry = init_carry(random_levels(), ENV, PARAMS, jax.random.key(0), 6)
    with pytest.raises(ValueError, match="6 instances.*4 devices.*n_env_instances=4 or 8"):
        shard(carry, lrl.make_mesh(4))


def test_parameters_after_fifty_updates_in_double_precision():
    def double(state):
        level = state.levels[0]
        algorithm = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, level.learner.state
        )
        learner = level.learner.replace(state=algorithm)
        return state.replace(levels=(level.replace(learner=learner),))

    with jax.enable_x64(True):
        hierarchy = sac(update_interval=160, n_updates=50)
        want = trained(hierarchy, 1, 10, cast=double)
        assert {x.dtype for x in jax.tree.leaves(want.actor)} == {jnp.dtype("float64")}
        for n_devices in (2, 8):
            got = trained(hierarchy, n_devices, 10, cast=double)
            assert distance(jax.device_get(got.actor), jax.device_get(want.actor)) <= 1e-9
            assert distance(jax.device_get(got.critics), jax.device_get(want.critics)) <= 1e-9
