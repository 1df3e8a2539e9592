"""A planner over learned skills."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lrl_jax.algorithms import SAC, TDMPC2
from lrl_jax.env_spec import env_spec
from lrl_jax.levels import DADSLevel, PlannerLevel, SPlaTESLevel
from lrl_jax.models import ProbabilisticEnsemble
from lrl_jax.planners import CEM, ICEM
from lrl_jax.predictors import IndexEncoder, PredictorFactory
from lrl_jax.settings import check_choice
from lrl_jax.spaces import Box, mapped_space
from lrl_jax.training.agents.parts import decayed, named, predictor_factory


@dataclasses.dataclass(frozen=True)
class StateOf:
    """The latent state of an observation, as a map of observations."""

    encoder: IndexEncoder

    def __call__(self, obs: Any) -> Any:
        """Map an observation [O] to the state [D]."""
        return self.encoder(obs)[0]


@dataclasses.dataclass(frozen=True)
class SkillAgent:
    """A planner with a learned model of skills, over a level that learns them.

    For goal-based environments: the planner's context is the desired goal, which the skills do not
    see; its state is what else is observed, and what the skills see.

    Attributes:
        state: name of the part of the observation that is the planner's state, such as
            "achieved_goal"; None for everything but the desired goal.
        method: "splates" or "dads".
        backbone: "sac", "tdmpc2" (the paper's sizes) or "tdmpc2-small".
        act_by: of a TD-MPC2 backbone, see `SPlaTESLevel`.
        skill_dim: entries of a skill, each in [-1, 1].
        skill_steps: environment steps K of a skill; DADS decides at every step.
        subgoal_skills: skills spent on a subgoal that a planner above the planner sets; 0 for none.
        subgoal_horizon: subgoals that it looks ahead.
        optimizer: "icem" or "cem".
        horizon: skills that a plan looks ahead.
        hold: times that a planned skill is repeated, see `PlannerLevel`.
        num_samples, n_iterations, elite_ratio, sigma: of the optimizer.
        mode: prediction of a mixture that plans follow.
        n_models, n_modes, model_hidden, periods, log_std_min: of the model; hidden sizes and
            periods also of the reward network. Plans that pass through a wall in one model do not
            in another.
        state_noise: see `RewardPredictor`.
        model_lr, final_model_lr: constant over the first half of the run, then log-linear.
        running_std_momentum: of the unit of the model's outputs.
        symmetry_steps: environment steps of the symmetry-breaking start; 0 for none.
        symmetry_factor: of that start: sqrt(3) keeps the size of uniform skills, more makes them
            grow.
        delta_standardizer: whether changes are standardized.
        standardizer_lr: of the standardizer. A slow one lets skills grow while it lags behind.
        planner_batch_size, model_batch_size: of the reward network and of the model.
        planner_interval, planner_updates: updates of the planner for so many of its rows.
        planner_buffer_size: its rows; few enough to forget the random walk.
        planner_warm_up, no_planning_steps: environment steps without planning at all, and until
            planning may begin.
        switch_planner_prob, switch_random_prob: probabilities, a decision, to change the mode.
        resample_prob: that random mode draws a new skill.
        hidden, gamma, batch_size: of the backbone SAC; the last two also of TD-MPC2.
        learning_rate, final_learning_rate: of the backbone, constant over the first half of the
            run, then log-linear: skills that no longer change can be modelled.
        skill_interval, skill_updates: updates of the skills for so many of their rows.
        skill_warm_up: environment steps with random actions.
        skill_buffer_size: rows of the skills' replay.
        n_alternatives, fixed_std: see `SkillLevel`.
        reward_mode, averaged_value, n_fresh_skills: see `SPlaTESLevel`; None for its default.
        offset: added to the skills' rewards, see `SkillLevel`; None for the backbone's default.
        relabel_skills: fraction of rows whose skill is drawn anew.
        freeze_at: fraction of the run after which skills no longer change, so that the planner's
            model can catch up; 1 for never.
    """

    state: str | None = None
    method: Literal["splates", "dads"] = "splates"
    backbone: Literal["sac", "tdmpc2", "tdmpc2-small"] = "sac"
    act_by: Literal["mppi", "policy"] = "mppi"
    skill_dim: int = 2
    skill_steps: int = 10
    subgoal_skills: int = 0
    subgoal_horizon: int = 5
    optimizer: Literal["icem", "cem"] = "icem"
    horizon: int = 12
    hold: int = 1
    num_samples: int = 64
    n_iterations: int = 4
    elite_ratio: float = 0.13
    sigma: float = 1.0
    mode: Literal["heaviest", "mean"] = "heaviest"
    n_models: int = 1
    n_modes: int = 4
    model_hidden: tuple[int, ...] = (128, 128)
    periods: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    log_std_min: float = -2.0
    state_noise: float = 0.1
    model_lr: float = 1e-3
    final_model_lr: float = 1e-4
    running_std_momentum: float = 0.005
    symmetry_steps: int = 24_000
    symmetry_factor: float = 3.0
    delta_standardizer: bool = True
    standardizer_lr: float = 1e-3
    planner_batch_size: int = 256
    model_batch_size: int = 512
    planner_interval: int = 64
    planner_updates: int = 128
    planner_buffer_size: int = 10_000
    planner_warm_up: int = 5_120
    no_planning_steps: int = 15_000
    switch_planner_prob: float = 0.3
    switch_random_prob: float = 0.3
    resample_prob: float = 1.0
    hidden: tuple[int, ...] = (128, 128)
    gamma: float = 0.95
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-4
    batch_size: int = 256
    skill_interval: int = 640
    skill_updates: int = 96
    skill_warm_up: int = 1_280
    skill_buffer_size: int = 30_000
    n_alternatives: int = 32
    fixed_std: float = 0.5
    reward_mode: Literal["last_step", "potential_difference"] | None = None
    averaged_value: bool = True
    n_fresh_skills: int = 2
    offset: float | None = None
    relabel_skills: float = 0.3
    freeze_at: float = 0.6

    def __post_init__(self):
        for name in ("hidden", "periods", "model_hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in (
            ("method", ("splates", "dads")),
            ("backbone", ("sac", "tdmpc2", "tdmpc2-small")),
            ("act_by", ("mppi", "policy")),
            ("optimizer", ("icem", "cem")),
        ):
            check_choice(name, getattr(self, name), choices)

    def levels(self, env: Any, total_steps: int) -> list[Any]:
        """The levels for `env`, for a run of `total_steps` environment steps."""
        skills = self._skills(total_steps)
        if not self.subgoal_skills:
            return [self._planner(total_steps), skills]
        return [self._subgoals(total_steps), self._follower(env, total_steps), skills]

    def obs_maps(self, env: Any) -> list[Any]:
        """What each level sees: those below the highest see the planner's state."""
        state = self._state(env)
        return [None, state, *([state] if self.subgoal_skills else [])]

    def _state(self, env: Any) -> StateOf:
        spec = env_spec(env)
        encoder = dataclasses.replace(
            self._encoder(),
            mapped_env_obs_shape=spec.obs_space.shape,
            goal_indices=spec.goal_indices,
        )
        return StateOf(encoder)

    def _encoder(self) -> IndexEncoder:
        return IndexEncoder(state=self.state, context="desired_goal")

    def _planner(self, total_steps: int) -> PlannerLevel:
        """Plans skills towards the desired goal."""
        factory = self._factory(self._encoder(), total_steps, self.symmetry_steps)
        return PlannerLevel(factory, hold=self.hold, **self._search(self.horizon))

    def _follower(self, env: Any, total_steps: int) -> PlannerLevel:
        """Plans skills towards subgoals, which are appended to the state that it sees."""
        obs_space, state = env_spec(env).obs_space, self._state(env)
        space = mapped_space(state, (state.encoder.latent_state_dim,), "float32", obs_space)
        encoder = IndexEncoder(context="desired_goal")
        factory = self._factory(encoder, total_steps, self.symmetry_steps)
        return PlannerLevel(
            factory,
            hold=self.hold,
            level_input_space=space,
            control_interval=self.subgoal_skills,
            pursues_input=True,
            **self._search(self.horizon),
        )

    def _subgoals(self, total_steps: int) -> PlannerLevel:
        """Plans subgoals towards the desired goal, with a model of what comes of them."""
        factory = self._factory(self._encoder(), total_steps, 0)
        settings = self._search(self.subgoal_horizon)
        # Its rows are fewer than those of the planner below: as many updates in all.
        settings["update_interval"] = max(1, self.planner_interval // self.subgoal_skills)
        # As many environment steps are remembered.
        settings["buffer_size"] = max(1, self.planner_buffer_size // self.subgoal_skills)
        return PlannerLevel(factory, **settings)

    def _search(self, horizon: int) -> dict[str, Any]:
        """Settings of a planner that are the same for all of them."""
        build = ICEM if self.optimizer == "icem" else CEM
        search = named(self, "num_samples", "n_iterations", "elite_ratio", "sigma")
        return {
            "optimizer": build(horizon, **search, return_mode="mean"),
            "buffer_size": self.planner_buffer_size,
            "update_interval": self.planner_interval,
            "n_updates": self.planner_updates,
            "batch_size": self.planner_batch_size,
            "warm_up_steps": self.planner_warm_up,
            "alternate_with_noise": True,
            "resample_random_action_prob": self.resample_prob,
            **named(self, "mode", "model_batch_size", "no_planning_steps"),
            **named(self, "switch_planner_prob", "switch_random_prob"),
        }

    def _factory(
        self, encoder: IndexEncoder, total_steps: int, symmetry_steps: int
    ) -> PredictorFactory:
        model = ProbabilisticEnsemble(
            **named(self, "n_models", "n_modes", "periods", "log_std_min", "running_std_momentum"),
            hidden=self.model_hidden,
            learn_termination=False,
            sb_start_duration=symmetry_steps,
            sb_start_factor=self.symmetry_factor,
        )
        return predictor_factory(
            encoder,
            model,
            decayed(self.model_lr, self.final_model_lr, total_steps),
            **named(self, "state_noise", "delta_standardizer"),
            delta_standardizer_lr=self.standardizer_lr,
        )

    def _backbone(self, total_steps: int) -> SAC | TDMPC2:
        rate = decayed(self.learning_rate, self.final_learning_rate, total_steps)
        if self.backbone == "sac":
            return SAC(hidden=self.hidden, gamma=self.gamma, learning_rate=rate)
        build = TDMPC2.small if self.backbone == "tdmpc2-small" else TDMPC2
        return build(gamma=self.gamma, learning_rate=rate, policy_learning_rate=rate)

    def _skills(self, total_steps: int) -> SPlaTESLevel | DADSLevel:
        settings: dict[str, Any] = {
            "skill_space": Box(-1, 1, (self.skill_dim,)),
            "buffer_size": self.skill_buffer_size,
            "update_interval": self.skill_interval,
            "n_updates": self.skill_updates,
            "warm_up_steps": self.skill_warm_up,
            **named(self, "batch_size", "n_alternatives", "fixed_std", "offset", "relabel_skills"),
            "freeze_after_steps": self.freeze_at * total_steps if self.freeze_at < 1 else None,
        }
        if self.method == "dads":
            return DADSLevel(self._backbone(total_steps), **settings)
        if self.backbone != "sac":
            settings["act_by"] = self.act_by
        return SPlaTESLevel(
            self._backbone(total_steps),
            **named(self, "reward_mode", "averaged_value", "n_fresh_skills"),
            control_interval=self.skill_steps,
            **settings,
        )
