"""What tests of meshes train, also in processes of their own."""

import jax
import jax.numpy as jnp
import numpy as np

import lrl_jax as lrl
from lrl_jax import devices
from lrl_jax.algorithms import SAC
from lrl_jax.collectors import init_carry, rollout
from lrl_jax.collectors.tick import specs
from lrl_jax.levels import SACLevel
from lrl_jax.training import TrainConfig

ENV, PARAMS = lrl.make("Maze2D-Medium-v0")
N = 16


def sac():
    level = SACLevel(
        SAC(hidden=(16, 16)),
        batch_size=64,
        buffer_size=3200,
        update_interval=160,
        warm_up_steps=0,
    )
    return lrl.Hierarchy([level], ENV, PARAMS)


def carry_of(hierarchy, n_devices, seed=0, cast=lambda state: state):
    """A carry on a mesh, made there: of several processes, each makes its own part."""

    def init(key):
        carry = init_carry(hierarchy, key, N)
        return carry.replace(hierarchy=cast(carry.hierarchy))

    if n_devices == 1:
        return init(jax.random.key(seed))
    with devices.use(lrl.make_mesh(n_devices)):
        return jax.jit(lambda key: devices.pin(init(key), specs))(jax.random.key(seed))


def trained(hierarchy, n_devices, n_updates, **more):
    """What SAC has learned after one round of 10 ticks and `n_updates` updates."""
    carry = carry_of(hierarchy, n_devices, **more)
    # The round's 160 rows owe one update: the number of updates changes nothing that is compiled.
    (level,) = carry.hierarchy.levels
    owed = level.owed + 160 * (n_updates - 1)
    carry = carry.replace(hierarchy=carry.hierarchy.replace(levels=(level.replace(owed=owed),)))
    carry, _ = rollout(hierarchy, carry, 10, learn=True, learn_interval=10)
    return carry.hierarchy.levels[0].learner.state


def double(state):
    """A state whose algorithm computes in double precision."""
    level = state.levels[0]
    algorithm = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, level.learner.state
    )
    learner = level.learner.replace(state=algorithm)
    return state.replace(levels=(level.replace(learner=learner),))


def in_double_precision(n_devices):
    """What SAC has learned after fifty updates in double precision."""
    with jax.enable_x64(True):
        return jax.device_get(trained(sac(), n_devices, 50, cast=double))


def learner_arrays(name, state):
    """Gradients of the first update (tenfold, in Adam's first moment) and parameters, flat."""
    parts = {
        "gradient": (state.actor_opt.mu, state.critic_opt.mu),
        "parameters": (state.actor, state.critics, state.target_critics),
    }
    return {f"{name}_{part}": flat(tree) for part, tree in parts.items()}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])


def distance(a, b):
    """Relative distance of two trees in the Euclidean norm."""
    a, b = flat(a), flat(b)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def small_config(devices=1):
    """A run of seconds."""
    level = SACLevel(
        SAC(hidden=(16,)), warm_up_steps=160, batch_size=32, buffer_size=3200, update_interval=4
    )
    return TrainConfig(
        levels=(level,),
        n_env_instances=N,
        total_steps=640,
        test_interval=320,
        test_episodes=4,
        final_test_episodes=4,
        devices=devices,
    )
