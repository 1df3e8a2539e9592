"""On-policy learning and children on two devices as on one, and of vmapped seeds as in a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import ENV, PARAMS, N, distance

import lrl_jax as lrl
from lrl_jax.algorithms import PPO
from lrl_jax.collectors import init_carry, rollout, shard
from lrl_jax.levels import Decision, Level, PPOLevel


@dataclasses.dataclass(frozen=True)
class Looks(Level):
    """Keeps sums of its fresh rows and of their children, and moves at random."""

    rollout_length: int = 8
    n_updates: int = 1
    needs: tuple = ("children",)

    def init_learner(self, key, spec):
        return {"rows": jnp.zeros((self.rollout_length, N)), "children": jnp.zeros((5, N))}

    def act(self, learner, memory, obs, ctx):
        return Decision(jax.random.uniform(ctx.key, (2,), minval=-1), memory)

    def learn(self, learner, replay, ctx):
        rows, mask = replay.fresh()
        first = jax.tree.map(lambda x: x[1], rows)
        children, there = replay.children(first, 5)
        learner = {
            "rows": jnp.where(mask, rows.rew, 0.0),
            "children": jnp.where(there, children.rew, 0.0),
        }
        return learner, {"rows": mask.sum(), "children": there.sum()}


@dataclasses.dataclass(frozen=True)
class Holds(Level):
    """Holds its input for four steps, or fewer now and then."""

    control_interval: int = 4
    buffer_size: int = 64 * N

    def input_space(self):
        return lrl.spaces.Box(-1, 1, (2,))

    def act(self, learner, memory, obs, ctx):
        return Decision(ctx.level_input, memory)

    def after_transition(self, learner, memory, row, ctx):
        memory, back = super().after_transition(learner, memory, row, ctx)
        return memory, back | jax.random.bernoulli(ctx.key, 0.2)


PPO_ = PPO(hidden=(16,), n_minibatches=2, n_epochs=2, learning_rate=1e-3)
STACKS = {
    "views": ([Looks(), Holds()], 32),
    "flat": ([PPOLevel(PPO_, rollout_length=16)], 32),
    "above": ([PPOLevel(PPO_, rollout_length=8), Holds()], 64),
}


def learned(hierarchy, carry, ticks):
    carry, out = rollout(hierarchy, carry, ticks, learn=True)
    return carry.hierarchy.levels[0].learner, out.metrics


@pytest.mark.parametrize("name", STACKS)
def test_two_devices_learn_what_one_learns(name):
    levels, ticks = STACKS[name]
    hierarchy = lrl.Hierarchy(levels, ENV, PARAMS)
    carry = init_carry(hierarchy, jax.random.key(0), N)
    want, metrics = learned(hierarchy, carry, ticks)
    assert metrics["level0/n_updates"] >= 1
    got, shared = learned(hierarchy, shard(carry, lrl.make_mesh(2)), ticks)
    assert float(shared["level0/n_updates"]) == float(metrics["level0/n_updates"])
    if name == "views":
        assert metrics["level0/rows"] > 0 and metrics["level0/children"] > N
        assert float(shared["level0/children"]) == float(metrics["level0/children"])
    assert distance(got, want) <= 1e-5


@pytest.mark.parametrize("name", STACKS)
def test_vmapped_seeds_learn_what_a_loop_over_them_learns(name):
    levels, ticks = STACKS[name]
    hierarchy = lrl.Hierarchy(levels, ENV, PARAMS)

    def train(key):
        return learned(hierarchy, init_carry(hierarchy, key, N), ticks)

    keys = jax.random.split(jax.random.key(1), 3)
    many, metrics = jax.jit(jax.vmap(train))(keys)
    assert len(set(np.asarray(metrics["level0/n_updates"]).tolist())) == 1
    one = jax.jit(train)
    for i in range(3):
        mine = jax.tree.map(lambda x, i=i: x[i], many)
        assert distance(mine, one(keys[i])[0]) <= 1e-4
