"""Levels as a user would write them, from what the library exports: option-critic and HIRO."""

import dataclasses

import jax
import jax.numpy as jnp

import lrl_jax as lrl
from lrl_jax.algorithms import SAC, Batch
from lrl_jax.levels import Decision, Level

# --- option-critic (Bacon et al. 2017), tables over [time, cue] -------------------------------


def place(obs):
    """Row and column of a table for observations [..., 2]."""
    return obs[..., 0].astype(int), obs[..., 1].astype(int)


def value_on_arrival(q, ends, obs, option):
    """U(s', w) = (1 - beta) Q(s', w) + beta max Q(s', .), for arrivals [...] in an option."""
    at = q[place(obs)]
    own = jnp.take_along_axis(at, option[..., None], -1)[..., 0]
    beta = jax.nn.sigmoid(ends[option, place(obs)[0]])
    return (1 - beta) * own + beta * at.max(-1), own - at.max(-1), beta


@dataclasses.dataclass(frozen=True)
class PolicyOverOptions(Level):
    """Values of options, learned from all steps that the options took inside its rows."""

    shape: tuple = (7, 2)
    epsilon: float = 0.1
    rate: float = 0.5
    buffer_size: int = 256
    update_interval: int = 16
    n_updates: int = 4
    needs: tuple = ("children",)

    def init_learner(self, key, spec):
        return {"q": jnp.zeros((*self.shape, spec.action_space.n))}

    def act(self, learner, memory, obs, ctx):
        coin, arm = jax.random.split(ctx.key)
        q = learner["q"][place(obs)]
        explore = ctx.explores & (jax.random.uniform(coin) < self.epsilon)
        return Decision(jnp.where(explore, jax.random.randint(arm, (), 0, len(q)), q.argmax()), ())

    def learn(self, learner, replay, ctx):
        rows = replay.sample(ctx.key, 64)
        steps, mask = replay.children(rows, most=6)
        q, option = learner["q"], steps.level_input
        arrival, *_ = value_on_arrival(q, ctx.below.learner["ends"], steps.obs_next, option)
        error = steps.rew + jnp.where(steps.terminated, 0, arrival) - q[(*place(steps.obs), option)]
        count = jnp.zeros_like(q).at[(*place(steps.obs), option)].add(mask.astype(q.dtype))
        total = jnp.zeros_like(q).at[(*place(steps.obs), option)].add(jnp.where(mask, error, 0))
        return {"q": q + self.rate * total / jnp.maximum(count, 1)}, {"children": mask.mean()}


@dataclasses.dataclass(frozen=True)
class Options(Level):
    """Policies of options, and ends that are learned: one ends where another is worth more."""

    n_options: int = 2
    n_times: int = 7
    rate: float = 0.3
    cost: float = 0.4  # of ending an option
    buffer_size: int = 512
    update_interval: int = 16
    n_updates: int = 2

    def input_space(self):
        return lrl.spaces.Discrete(self.n_options)

    def init_learner(self, key, spec):
        policy = 0.3 * jax.random.normal(key, (self.n_options, spec.action_space.n))
        return {"policy": policy, "ends": jnp.zeros((self.n_options, self.n_times))}

    def act(self, learner, memory, obs, ctx):
        logits = learner["policy"][ctx.level_input]
        drawn = jax.random.categorical(ctx.key, logits)
        return Decision(jnp.where(ctx.explores, drawn, logits.argmax()), ())

    def after_transition(self, learner, memory, row, ctx):
        beta = jax.nn.sigmoid(learner["ends"][row.level_input, place(row.obs_next)[0]])
        return memory, beta > jnp.where(ctx.training, jax.random.uniform(ctx.key), 0.5)

    def learn(self, learner, replay, ctx):
        rows = replay.sample(ctx.key, 64)
        option, q = rows.level_input, ctx.above.learner["q"]
        arrival, gain, beta = value_on_arrival(q, learner["ends"], rows.obs_next, option)
        error = rows.rew + jnp.where(rows.terminated, 0, arrival) - q[(*place(rows.obs), option)]
        chosen = jax.nn.softmax(learner["policy"])[option]
        step = error[:, None] * (jax.nn.one_hot(rows.act, chosen.shape[-1]) - chosen)
        policy = learner["policy"].at[option].add(self.rate * step / 8)
        step = -beta * (1 - beta) * jnp.where(rows.terminated, 0, gain + self.cost)
        ends = learner["ends"].at[option, place(rows.obs_next)[0]].add(self.rate * step)
        return {"policy": policy, "ends": ends}, {"beta": beta.mean()}


# --- HIRO (Nachum et al. 2018) on soft actor-critic ------------------------------------------


def batch_of(rows, condition, condition_next, terminated):
    """Rows as the algorithm takes them."""
    return Batch(
        obs=rows.obs,
        condition=condition,
        act=rows.act,
        rew=rows.rew,
        obs_next=rows.obs_next,
        condition_next=condition_next,
        terminated=terminated,
        elapsed_env_steps=rows.elapsed_env_steps,
        mask=jnp.ones(rows.rew.shape, bool),
    )


@dataclasses.dataclass(frozen=True)
class Worker(Level):
    """Goes where it was told, relative to where it was told it."""

    dim: int = 1
    algorithm: SAC = SAC(hidden=(32, 32), gamma=0.9, learning_rate=1e-3)
    control_interval: int = 4
    buffer_size: int = 20_000
    update_interval: int = 32
    n_updates: int = 8
    learn_from: float = 512
    needs: tuple = ("control",)

    def input_space(self):
        return lrl.spaces.Box(-1, 1, (self.dim,))

    def init_learner(self, key, spec):
        return self.algorithm.init(key, spec.obs_shape[0], self.dim, spec.action_space)

    def goal(self, start, told, obs):
        """The goal transition: what is left to go of a goal that was told at `start`."""
        return start[..., : self.dim] + told - obs[..., : self.dim]

    def act(self, learner, memory, obs, ctx):
        goal = self.goal(ctx.control.start_obs, ctx.level_input, obs)
        action, _ = self.algorithm.act(learner, (), obs, goal, ctx.key, ctx.explores)
        return Decision(action, ())

    def reward(self, learner, rows, ctx):
        left = self.goal(rows.control.start_obs, rows.level_input, rows.obs_next)
        return -jnp.linalg.norm(left, axis=-1)

    def learn(self, learner, replay, ctx):
        keys = jax.random.split(ctx.key)
        rows = replay.sample(keys[0], 128)
        goals = (
            self.goal(rows.control.start_obs, rows.level_input, x)
            for x in (rows.obs, rows.obs_next)
        )
        return self.algorithm.update(learner, batch_of(rows, *goals, rows.terminated), keys[1])


@dataclasses.dataclass(frozen=True)
class Manager(Level):
    """Tells goals; what it told earlier is corrected to what the worker of today would need."""

    algorithm: SAC = SAC(hidden=(32, 32), gamma=0.8, learning_rate=1e-3)
    n_candidates: int = 8
    buffer_size: int = 5_000
    update_interval: int = 8
    n_updates: int = 8
    learn_from: float = 512
    needs: tuple = ("children",)

    def init_learner(self, key, spec):
        return self.algorithm.init(key, spec.obs_shape[0], 0, spec.action_space)

    def act(self, learner, memory, obs, ctx):
        action, _ = self.algorithm.act(learner, (), obs, jnp.zeros(0), ctx.key, ctx.explores)
        return Decision(action, ())

    def corrected(self, replay, worker, rows, key):
        """Rows with the goal, of some candidates, that makes the worker's actions likeliest."""
        level, most = worker.level, worker.level.control_interval
        steps, mask = replay.children(rows, most)
        moved = rows.obs_next[:, : level.dim] - rows.obs[:, : level.dim]
        noise = 0.5 * jax.random.normal(key, (self.n_candidates, *moved.shape))
        candidates = jnp.concatenate([rows.act[None], moved[None], moved + noise]).clip(-1, 1)
        goals = level.goal(rows.obs, candidates[:, None], steps.obs)  # [candidates, most, B, dim]

        def mean_action(obs, goal):
            return level.algorithm.act(worker.learner, (), obs, goal, key, False)[0]

        wide = jnp.broadcast_to(steps.obs, (*goals.shape[:3], steps.obs.shape[-1]))
        actions = jax.vmap(jax.vmap(jax.vmap(mean_action)))(wide, goals)
        errors = jnp.where(mask[..., None], (actions - steps.act.clip(-1, 1)) ** 2, 0).sum((1, -1))
        best = jnp.argmin(errors, 0)
        return rows.replace(act=candidates[best, jnp.arange(len(best))])

    def learn(self, learner, replay, ctx):
        keys = jax.random.split(ctx.key)

        def relabel(rows, key):
            return self.corrected(replay, ctx.below, rows, key)

        rows = replay.sample(keys[0], 128, relabel=relabel)
        nothing = jnp.zeros((128, 0))
        return self.algorithm.update(
            learner, batch_of(rows, nothing, nothing, rows.terminated), keys[1]
        )
