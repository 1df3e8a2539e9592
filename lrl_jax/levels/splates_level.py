"""Stable and diverse temporally extended skills (SPlaTES) as a level."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lrl_jax.algorithms import Batch, Scale, SkillValue, SkillValueState
from lrl_jax.algorithms.base import from_unit
from lrl_jax.levels.base import LevelSpec, Row
from lrl_jax.levels.skill_level import SkillLearner, SkillLevel, check_parent
from lrl_jax.nets.tdmpc2 import pick_heads
from lrl_jax.schedules import Schedule
from lrl_jax.settings import check_choice, check_int

REWARD_MODES = ("last_step", "potential_difference")


@struct.dataclass
class SPlaTESLearner(SkillLearner):
    """What SPlaTES shares over instances; see `SkillLearner` for the first fields.

    Attributes:
        start: how the parent's latent states become features.
        w: the parent's standardizer W as it was at the last update, [D, D]: what the networks see
            of the change so far does not move once they learn no more.
        skill_value: state of the averaged value and the converter, on TD-MPC2; else None.
    """

    start: Scale
    w: jax.Array
    skill_value: SkillValueState | None


@dataclasses.dataclass(frozen=True)
class SPlaTESLevel(SkillLevel):
    """Learns skills of K steps whose ends the model above predicts (Gürtler and Martius 2025).

    A skill z is held for K = `control_interval` decisions from s_0 on. Its potential phi tells the
    end reached from there under z apart from the ends of other skills, by the model over whole
    skills of the level above. The networks see the observation, z, the step k, s_0 and, on SAC, the
    change W (s - s_0) so far, in the units that rewards are made of. On SAC the offset is 0, as it
    has to be where an environment cannot terminate: set `offset=1` where it can.

    The target bootstraps within a skill with (k + 1, s_0, z). At its end it takes the value
    averaged over skills: a skill is judged by where it leaves the agent for an unknown next one,
    which makes skills chainable. On SAC the average is taken over a few fresh skills; on TD-MPC2 it
    is a head of its own, which plans, that end with the skill, bootstrap with as well. See
    `SkillLevel` for the other settings.

    Attributes:
        control_interval: steps K of a skill.
        fixed_std: of the model's modes in standardized units, a number or a schedule.
        n_alternatives: skills that rewards compare with.
        reward_mode: "last_step": phi at the end of a skill and 0 before; "potential_difference":
            phi(s_{k+1}) - phi(s_k), which adds up to the same but for the start. None for the
            backbone's default.
        averaged_value: whether the value behind a skill's end is that of fresh skills; else that of
            starting the same skill again.
        n_fresh_skills: fresh skills that the average is taken over, on SAC.
        act_by: on TD-MPC2, "mppi" to plan within the skill, or "policy".
    """

    control_interval: int = 10
    fixed_std: float | Schedule = 0.5
    n_alternatives: int = 32
    reward_mode: str | None = None
    averaged_value: bool = True
    n_fresh_skills: int = 2
    act_by: str = "mppi"

    def __post_init__(self):
        all_at_once = self.chunk_size is None and self.act_by == "policy"
        super().__post_init__()
        if all_at_once:  # one pass through a network is no plan
            object.__setattr__(self, "chunk_size", None)
        check_choice("reward_mode", self.reward_mode, REWARD_MODES)
        check_choice("act_by", self.act_by, ("mppi", "policy"))
        n = check_int("n_fresh_skills", self.n_fresh_skills, 1)
        object.__setattr__(self, "n_fresh_skills", n)
        if self.control_interval is None:  # type: ignore[unreachable]
            raise ValueError("control_interval=None: a skill lasts a number of steps, such as 10.")

    def _backbone_defaults(self, on_sac: bool) -> dict[str, Any]:
        if on_sac:
            return {
                "least_potential": -10.0,
                "centre": False,
                "offset": 0.0,
                "reward_mode": "potential_difference",
            }
        return {**super()._backbone_defaults(on_sac), "reward_mode": "last_step"}

    # ------------------------------------------------------------------ state

    def condition_dim(self, spec: LevelSpec) -> int:
        """Size of z, k, s_0 and, on SAC, of the change so far."""
        if spec.parent_latent is None:
            raise TypeError(
                "SPlaTESLevel needs a level above that plans in latent states: a PlannerLevel."
            )
        return self.skill_space.dim + 1 + (2 if self.on_sac else 1) * spec.parent_latent.dim

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> SPlaTESLearner:
        """Create the backbone's state for this place; consumes `key`."""
        key, key_value = jax.random.split(key)
        base = super().init_learner(key, spec)
        assert spec.parent_latent is not None  # `condition_dim` has seen to that
        start, skill_value = Scale.of(spec.parent_latent), None
        if not self.on_sac:
            heads = self._heads(start.centre.shape[0])
            skill_value = heads.init(key_value, self.algorithm.latent_dim)
        return SPlaTESLearner(
            **{f.name: getattr(base, f.name) for f in dataclasses.fields(base)},
            start=start,
            w=jnp.eye(spec.parent_latent.dim),
            skill_value=skill_value,
        )

    def _heads(self, start_dim: int) -> SkillValue:
        return SkillValue(start_dim, self.algorithm.hidden, self.algorithm.two_hot)

    def conditions(
        self,
        learner: SPlaTESLearner,
        parent: Any,
        skill: jax.Array,
        k: jax.Array,
        start: jax.Array,
        state: jax.Array,
    ) -> jax.Array:
        """What the networks see beside the observation, [..., C].

        Args:
            learner, parent: of this level and the one above.
            skill: z, [..., *shape of a skill].
            k: steps of it so far, [...].
            start, state: latent states of the parent, s_0 and now, [..., D].
        """
        most = max(self.control_interval - 1, 1)
        parts = [
            learner.condition(skill, batch_shape=k.shape),
            (2.0 * k.astype(jnp.float32) / most - 1.0)[..., None],
            learner.start(start),
        ]
        if self.on_sac:
            parts.append((state - start) @ learner.w)
        return jnp.concatenate(parts, -1)

    # ----------------------------------------------------------------- acting

    def decide(self, learner, memory, obs, level_input, key, parent, training, control):
        check_parent(self, parent)
        start, _ = parent.latent(control.start_obs)
        state, _ = parent.latent(control.parent_obs)
        x = learner.observation(obs)
        k, explores = control.n_steps, self.explores(learner, training)
        if not self.on_sac and self.act_by == "mppi":
            return self._plan(learner, memory, x, parent, level_input, k, start, key, explores)
        c = self.conditions(learner, parent, level_input, k, start, state)
        if self.on_sac:
            return self.algorithm.act(learner.state, memory, x, c, key, explores)
        space = learner.action_space
        noise = jax.random.normal(key, (space.dim,)) * explores
        latent = self.algorithm.encode(learner.state.params, x)
        unit, _ = self.algorithm.policy(learner.state.params, latent, c, noise)
        return from_unit(space, unit), memory

    def _plan(self, learner, memory, x, parent, skill, k, start, key, training):
        """Plan to the end of the skill, and bootstrap there with the averaged value."""
        horizon, last = self.algorithm.planner.horizon, self.control_interval
        steps = jnp.minimum(k + jnp.arange(horizon + 1), last - 1)
        skills = jnp.broadcast_to(skill, (horizon + 1, *skill.shape))
        starts = jnp.broadcast_to(start, (horizon + 1, *start.shape))
        c = self.conditions(learner, parent, skills, steps, starts, starts)
        n_steps = jnp.minimum(horizon, last - k)
        heads, params = self._heads(start.shape[-1]), learner.skill_value.params
        algorithm, state = self.algorithm, learner.state

        def terminal_value(latents, q):
            starts = heads.convert(params, latents)
            if self.averaged_value:
                _, value = heads.value(params, latents, starts)
            else:  # the same skill again, from there
                z = jnp.broadcast_to(learner.condition(skill), (len(starts), self.skill_space.dim))
                again = jnp.concatenate([z, -jnp.ones((len(starts), 1)), starts], -1)
                noise = jnp.zeros((len(starts), state.action_space.dim))
                unit, _ = algorithm.policy(state.params, latents, again, noise)
                value = algorithm.q_values(state.params["q"], latents, unit, again)[1].mean(0)
            return jnp.where(k + n_steps >= last, value, q)

        latent = algorithm.encode(state.params, x)
        return algorithm.plan(
            state, memory, latent, c, key, training, n_steps=n_steps, terminal_value=terminal_value
        )

    # ---------------------------------------------------------------- rewards

    def raw_reward(self, learner: SPlaTESLearner, parent: Any, rows: Row) -> jax.Array:
        """phi at the last step, or its change over the step, [B]."""
        start, context = parent.latent(rows["start_obs"])
        end, _ = parent.latent(rows["parent_obs_next"])
        args = (learner, parent, start, context, rows.level_input)
        if self.reward_mode == "last_step":
            return jnp.where(self._is_last(rows["k"]), self.potential(*args, end)[0], 0.0)
        state, _ = parent.latent(rows["parent_obs"])
        before, after = self.potential(*args, state, end)
        return after - before

    def _is_last(self, k: jax.Array) -> jax.Array:
        return k + 1 >= self.control_interval

    # --------------------------------------------------------------- learning

    def make_batch(self, learner, parent, fields, mask, rew) -> Batch:
        start, _ = parent.latent(fields["start_obs"])
        state, _ = parent.latent(fields["parent_obs"])
        z, k = fields["level_input"], fields["k"]
        condition = self.conditions(learner, parent, z, k, start, state)
        return Batch(
            obs=learner.observation(fields["obs"]),
            condition=condition,
            act=fields["act"],
            rew=rew.reshape(mask.shape),
            obs_next=learner.observation(fields["obs_next"]),
            condition_next=condition,  # `next_conditions` has what follows
            terminated=fields["terminated"],
            mask=mask,
        )

    def next_conditions(
        self, learner: SPlaTESLearner, parent: Any, fields: dict[str, Any], skills: jax.Array
    ) -> jax.Array:
        """Conditions behind rows [...]: within the skill, or of fresh ones behind its end.

        Also where a row was truncated. The episode may go on with another skill there, but the
        value is that of this one.

        Args:
            learner, parent: of this level and the one above.
            fields: of the rows, leading axes [...].
            skills: fresh skills, [M, ..., *shape of a skill].

        Returns:
            [M, ..., C].
        """
        start, _ = parent.latent(fields["start_obs"])
        state, _ = parent.latent(fields["parent_obs_next"])
        z, k = fields["level_input"], fields["k"]
        last = self._is_last(k)
        start = jnp.where(last[..., None], state, start)
        k = jnp.where(last, 0, k + 1)
        z = jnp.broadcast_to(z, skills.shape)
        if self.averaged_value:
            fresh = last.reshape(*last.shape, *[1] * (z.ndim - 1 - last.ndim))
            z = jnp.where(fresh, skills, z)
        n = skills.shape[0]

        def repeated(x):
            return jnp.broadcast_to(x, (n, *x.shape))

        return self.conditions(learner, parent, z, repeated(k), repeated(start), repeated(state))

    def targets(
        self,
        learner: SPlaTESLearner,
        parent: Any,
        fields: dict[str, Any],
        batch: Batch,
        key: jax.Array,
    ) -> jax.Array:
        """Values that the critics learn, [B]; consumes `key`.

        r + gamma (1 - terminated) V, with V the value of going on within the skill, or the mean
        over fresh skills behind its end.
        """
        key_skills, key_value = jax.random.split(key)
        n, state = self.n_fresh_skills, learner.state
        skills = self.draw_skills(key_skills, n, *batch.mask.shape)
        conditions = self.next_conditions(learner, parent, fields, skills)
        obs_next = jnp.broadcast_to(batch.obs_next, (n, *batch.obs_next.shape))
        value = self.algorithm.soft_value(
            state,
            obs_next.reshape(-1, obs_next.shape[-1]),
            conditions.reshape(-1, conditions.shape[-1]),
            key_value,
        )
        value = value.reshape(n, *batch.mask.shape).mean(0)
        return batch.rew + state.settings["gamma"] * jnp.where(batch.terminated, 0.0, value)

    def learn(self, learner: SPlaTESLearner, buffer: Any, key: jax.Array, *, parent: Any):
        """Make one update; consumes `key`."""
        check_parent(self, parent)
        return super().learn(learner.replace(w=parent.ps.W), buffer, key, parent=parent)

    def update(self, learner, parent, fields, batch, key_next, key_update):
        """One update of the backbone; consumes the keys. Returns learner and metrics."""
        if not self.on_sac:
            return self._update_tdmpc2(learner, parent, fields, batch, key_next, key_update)
        targets = self.targets(learner, parent, fields, batch, key_next)
        state, metrics = self.algorithm.update(learner.state, batch, key_update, targets)
        return learner.replace(state=state), metrics

    def latent_targets(self, learner, parent, fields, batch, key) -> tuple[Batch, jax.Array]:
        """Conditions behind the rows, and values that TD-MPC2's critics learn; consumes `key`.

        Args:
            learner, parent: of this level and the one above.
            fields: of the rows, leading axes [T, B].
            batch: of these rows.
            key: typed key.

        Returns:
            The batch with `condition_next`, and the targets [T, B].
        """
        key_skills, key_value = jax.random.split(key)
        algorithm, state = self.algorithm, learner.state
        skills = self.draw_skills(key_skills, 1, *batch.mask.shape)
        following = self.next_conditions(learner, parent, fields, skills)[0]
        batch = batch.replace(condition_next=following)
        latents = algorithm.encode(state.params, batch.obs_next)
        targets = algorithm.td_targets(state, batch, latents, key_value)
        if self.averaged_value:
            start = learner.start(parent.latent(fields["parent_obs_next"])[0])
            heads = self._heads(start.shape[-1])
            _, value = heads.value(learner.skill_value.params, latents, start)
            value = jnp.where(batch.terminated, 0.0, value)
            averaged = batch.rew + state.settings["gamma"] * value
            targets = jnp.where(self._is_last(fields["k"]), averaged, targets)
        return batch, targets

    def _update_tdmpc2(self, learner, parent, fields, batch, key_next, key_update):
        algorithm = self.algorithm
        key_next, key_skills, key_noise, key_heads = jax.random.split(key_next, 4)
        batch, targets = self.latent_targets(learner, parent, fields, batch, key_next)
        state, metrics = algorithm.update(learner.state, batch, key_update, targets)
        # Any state may be the start of a skill: its value is that of a fresh one.
        now, _ = parent.latent(fields["parent_obs"])
        skills = self.draw_skills(key_skills, *batch.mask.shape)
        k = jnp.zeros_like(fields["k"])
        condition = self.conditions(learner, parent, skills, k, now, now)
        latents = algorithm.encode(state.params, batch.obs)
        noise = jax.random.normal(key_noise, (*batch.mask.shape, learner.action_space.dim))
        critics = pick_heads(state.target_q, key_heads)
        value = algorithm.next_value(state, critics, latents, condition, noise)
        start = learner.start(now)
        rate = state.settings["learning_rate"]
        skill_value, more = self._heads(start.shape[-1]).update(
            learner.skill_value, latents, start, value, batch.mask, rate
        )
        return learner.replace(state=state, skill_value=skill_value), {**metrics, **more}
