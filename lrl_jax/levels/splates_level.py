"""Stable and diverse temporally extended skills (SPlaTES) as a level."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrl_jax.buffers import Row
from lrl_jax.levels import splates_sac, splates_tdmpc2
from lrl_jax.levels.base import Context, LevelSpec
from lrl_jax.levels.learner_levels import AlgorithmLearner
from lrl_jax.levels.planner_level import PlannerLearner
from lrl_jax.levels.skill_level import SkillLevel, Skills, model_above
from lrl_jax.schedules import Schedule
from lrl_jax.settings import check_choice, check_flag, check_int, put_checked

REWARD_MODES = ("last_step", "potential_difference")


@dataclasses.dataclass(frozen=True)
class SPlaTESLevel(SkillLevel):
    """Learns skills of K steps whose ends the model above predicts (Gürtler and Martius 2025).

    A skill z is held for K = `control_interval` decisions from s_0 on. Its potential phi says how
    well the end reached from there under z differs from those of other skills, by the model over
    whole skills of the level above. The networks see the observation, z, the step k, s_0 and, on
    SAC, the change W (s - s_0) so far, in the units that rewards are made of. On SAC the offset is
    0, as it has to be if an environment cannot terminate: set `offset=1` if it can.

    The target bootstraps within a skill with (k + 1, s_0, z). At its end it takes the value
    averaged over skills: a skill is judged by where it leaves the agent for an unknown next one,
    which makes skills chainable. On SAC the average is taken over a few fresh skills; on TD-MPC2 a
    separate head learns it, and plans, which end with the skill, bootstrap with it too. See
    `SkillLevel` for the other settings.

    Attributes:
        control_interval: steps K of a skill.
        fixed_std: of the model's modes in standardized units, a number or a schedule.
        n_alternatives: skills that rewards compare with.
        reward_mode: "last_step": phi at the end of a skill and 0 before; "potential_difference":
            phi(s_{k+1}) - phi(s_k), which telescopes to phi at the end minus phi at the start.
            None for the backbone's default.
        averaged_value: whether the value after a skill's end is that of fresh skills; else that of
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
        put_checked(self, check_choice, ("act_by",), ("mppi", "policy"))
        super().__post_init__()
        put_checked(self, check_choice, ("reward_mode",), REWARD_MODES)
        put_checked(self, check_flag, ("averaged_value",))
        put_checked(self, check_int, ("n_fresh_skills",), 1)
        if self.control_interval is None:
            raise ValueError("control_interval=None: a skill lasts a number of steps, such as 10.")

    @property
    def candidates(self) -> int:
        """One pass through a network is not a plan."""
        return super().candidates if self.act_by == "mppi" else 0

    def _backbone_defaults(self, on_sac: bool) -> dict[str, Any]:
        if on_sac:
            return {
                "least_potential": -10.0,
                "centre": False,
                "offset": 0.0,
                "reward_mode": "potential_difference",
            }
        return {**super()._backbone_defaults(on_sac), "reward_mode": "last_step"}

    @property
    def _backbone(self) -> Any:
        """How the level acts and learns on its algorithm."""
        return splates_sac if self.on_sac else splates_tdmpc2

    # ------------------------------------------------------------------ state

    def condition_dim(self, spec: LevelSpec) -> int:
        """Size of z, k, s_0 and, on SAC, of the change so far."""
        return self.skill_space.dim + 1 + self._backbone.STATES * _latent(spec).dim

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> AlgorithmLearner:
        """Create the backbone's state for this place; consumes `key`."""
        key, key_backbone = jax.random.split(key)
        learner = super().init_learner(key, spec)
        backbone = self._backbone.init(self.algorithm, key_backbone, _latent(spec))
        return learner.replace(skills=learner.skills.replace(backbone=backbone))

    def conditions(
        self,
        learner: AlgorithmLearner,
        skill: jax.Array,
        k: jax.Array,
        start: jax.Array,
        state: jax.Array,
    ) -> jax.Array:
        """What the networks see next to the observation, [..., C].

        Args:
            learner: of this level.
            skill: z, [..., *shape of a skill].
            k: steps of it so far, [...].
            start, state: latent states of the level above, s_0 and now, [..., D].
        """
        most = max(self.control_interval - 1, 1)
        backbone = learner.skills.backbone
        parts = [
            learner.hear(skill, k.shape),
            (2.0 * k.astype(jnp.float32) / most - 1.0)[..., None],
            backbone.start(start),
            *self._backbone.more_conditions(backbone, start, state),
        ]
        return jnp.concatenate(parts, -1)

    def decide(self, learner, memory, obs, ctx: Context):
        model, control = model_above(ctx), ctx.control
        assert control is not None
        start, _ = model.latent(control.start_obs)
        state, _ = model.latent(control.above_obs)
        explores = self.explores(ctx)
        return self._backbone.decide(
            self, learner, memory, obs, ctx, control.steps, start, state, explores
        )

    # ---------------------------------------------------------------- rewards

    def raw_reward(self, skills: Skills, model: PlannerLearner, rows: Row) -> jax.Array:
        """phi at the last step, or its change over the step, [B]."""
        control = rows.control
        assert control is not None
        start, context = model.latent(control.start_obs)
        end, _ = model.latent(control.above_obs_next)
        args = (skills, model, start, context, rows.level_input)
        if self.reward_mode == "last_step":
            return jnp.where(self.is_last(control.steps), self.potential(*args, end)[0], 0.0)
        state, _ = model.latent(control.above_obs)
        before, after = self.potential(*args, state, end)
        return after - before

    def is_last(self, k: jax.Array) -> jax.Array:
        """Whether step k of a skill is its last, bool [...]."""
        return k + 1 >= self.control_interval

    # --------------------------------------------------------------- learning

    def row_conditions(
        self, learner: AlgorithmLearner, model: PlannerLearner, rows: Row
    ) -> jax.Array:
        """Conditions of rows [...], [..., C]."""
        control = rows.control
        assert control is not None
        start, _ = model.latent(control.start_obs)
        state, _ = model.latent(control.above_obs)
        return self.conditions(learner, rows.level_input, control.steps, start, state)

    def next_conditions(
        self, learner: AlgorithmLearner, model: PlannerLearner, rows: Row, skills: jax.Array
    ) -> jax.Array:
        """Conditions after rows [...]: within the skill, or of fresh ones after its end.

        Also where a row was truncated. The episode may go on with another skill there, but the
        value is that of this one.

        Args:
            learner: of this level.
            model: learner of the level above.
            rows: leading axes [...].
            skills: fresh skills, [M, ..., *shape of a skill].

        Returns:
            [M, ..., C].
        """
        control = rows.control
        assert control is not None
        start, _ = model.latent(control.start_obs)
        state, _ = model.latent(control.above_obs_next)
        z, k = rows.level_input, control.steps
        last = self.is_last(k)
        start = jnp.where(last[..., None], state, start)
        k = jnp.where(last, 0, k + 1)
        z = jnp.broadcast_to(z, skills.shape)
        if self.averaged_value:
            fresh = last.reshape(*last.shape, *[1] * (z.ndim - 1 - last.ndim))
            z = jnp.where(fresh, skills, z)
        n = skills.shape[0]

        def repeated(x):
            return jnp.broadcast_to(x, (n, *x.shape))

        return self.conditions(learner, z, repeated(k), repeated(start), repeated(state))

    def update(self, learner, model, rows, mask, key_next, key_update):
        """One update of the backbone; consumes the keys. Returns learner and metrics."""
        return self._backbone.update(self, learner, model, rows, mask, key_next, key_update)


def _latent(spec: LevelSpec) -> Any:
    """Space of the latent states of the level above."""
    assert spec.above is not None  # `check` has seen to that
    return spec.above.latent_space
