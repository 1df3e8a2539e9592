"""Base of levels that learn skills which the model of the level above can distinguish."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrl_jax import struct
from lrl_jax.algorithms import SAC, TDMPC2
from lrl_jax.algorithms.base import init_settings, observe_schedules, present_settings
from lrl_jax.algorithms.masked import shares
from lrl_jax.buffers import Replay, Row
from lrl_jax.levels.base import Context, LevelSpec
from lrl_jax.levels.learner_levels import AlgorithmLearner, LearnerLevel
from lrl_jax.levels.planner_level import PlannerLearner
from lrl_jax.schedules import Schedule, check_setting
from lrl_jax.settings import check_flag, check_float, check_int, optional, put_checked
from lrl_jax.spaces import Box, Discrete, Space

BACKBONES = ("sac", "tdmpc2")


class Moments(struct.Node):
    """Running mean and mean square of rewards; the first batch initialises them."""

    mean: jax.Array  # [] float32
    square: jax.Array  # [] float32
    initialised: jax.Array  # [] bool

    @classmethod
    def zero(cls) -> Moments:
        """Before the first batch."""
        return cls(jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32), jnp.zeros((), bool))

    @property
    def std(self) -> jax.Array:
        """[], at least 1e-3, so that rewards that do not differ are not blown up."""
        return jnp.sqrt(jnp.maximum(self.square - self.mean**2, 1e-6))

    def update(self, x: jax.Array, mask: jax.Array, momentum: jax.Array) -> Moments:
        """Move towards the moments of x [B] where `mask` [B]."""
        weight = shares(mask)
        rate = jnp.where(mask.any(), jnp.where(self.initialised, momentum, 1.0), 0.0)
        mean = self.mean + rate * ((x * weight).sum() - self.mean)
        square = self.square + rate * ((x * x * weight).sum() - self.square)
        return Moments(mean, square, self.initialised | mask.any())


class Skills(struct.Node):
    """What a level that learns skills shares over instances, besides its policy.

    Attributes:
        alternatives: skills that rewards compare with, [L, *shape of a skill].
        moments: running moments of the rewards.
        settings: momentum, offset, least_potential and, as a number, fixed_std, float32 [] each.
        scheduled: fixed_std where it is a schedule, at its present value.
        backbone: what the level's way of learning adds, or None.
    """

    alternatives: jax.Array
    moments: Moments
    settings: dict[str, jax.Array]
    scheduled: dict[str, jax.Array]
    backbone: Any = None


@dataclasses.dataclass(frozen=True)
class SkillLevel(LearnerLevel):
    """Abstract: learns skills that the model above can predict and distinguish.

    The level above must have a model over skills, as `PlannerLevel` has. Intrinsic rewards exist
    only when rows are sampled: they come from the parent's present model. See `LearnerLevel` for
    the other settings.

    Attributes:
        algorithm: the backbone: `SAC(...)`, `TDMPC2(...)`, "sac", "tdmpc2", or None for SAC on a
            CPU and TD-MPC2 on an accelerator.
        skill_space: Box with bounds, or Discrete; skills are drawn from it uniformly.
        n_alternatives: skills L drawn for comparison. With Discrete skills all others are compared.
        fixed_std: of the model's modes in standardized units, a number or a schedule of environment
            steps.
        least_potential: the potential is clipped to at least that; None for the backbone's default.
        standardize: whether rewards are divided by their running std.
        centre: whether the running mean is removed before; None for the backbone's default.
        momentum: of the running moments.
        offset: added to rewards after that; None for the backbone's default.
        relabel_skills: fraction of sampled rows whose skill is drawn again.
        freeze_after_steps: environment steps after which skills learn no more, and policies act
            without noise, so that the model above sees what will be used; None for never.
    """

    algorithm: Any = None
    skill_space: Space = Box(-1, 1, (2,))
    n_alternatives: int = 100
    fixed_std: float | Schedule = 1.0
    least_potential: float | None = None
    standardize: bool = True
    centre: bool | None = None
    momentum: float = 0.005
    offset: float | None = None
    relabel_skills: float = 0.0
    freeze_after_steps: float | None = None

    needs = ("control",)
    algorithms: ClassVar[tuple[type, ...]] = (SAC, TDMPC2)

    def __post_init__(self):
        if type(self) is SkillLevel:
            raise TypeError("SkillLevel is abstract: use SPlaTESLevel or DADSLevel.")

        def put(name, value):
            object.__setattr__(self, name, value)

        algorithm = self.algorithm
        if algorithm is None:
            algorithm = "sac" if jax.default_backend() == "cpu" else "tdmpc2"
        if isinstance(algorithm, str):
            if algorithm not in BACKBONES:
                raise ValueError(
                    f"algorithm: unknown backbone {algorithm!r}, use one of {BACKBONES}."
                )
            algorithm = SAC(hidden=(128, 128), gamma=0.95) if algorithm == "sac" else TDMPC2()
        put("algorithm", algorithm)
        on_sac = isinstance(algorithm, SAC)
        for name, value in self._backbone_defaults(on_sac).items():
            if getattr(self, name) is None:
                put(name, value)
        if not isinstance(self.skill_space, Box | Discrete) or not self.skill_space.is_bounded:
            raise TypeError(
                f"skill_space must be a bounded Box or a Discrete to draw from, got "
                f"{self.skill_space!r}."
            )
        if isinstance(self.skill_space, Discrete) and self.skill_space.n < 2:
            raise ValueError(
                "skill_space: a single skill cannot differ from others: use Discrete(2) or more."
            )
        put("level_input_space", self.skill_space)
        put_checked(self, check_int, ("n_alternatives",), 1)
        put_checked(self, check_setting, ("fixed_std",), 1e-6)
        put_checked(self, check_float, ("least_potential",), -math.inf, 0.0)
        put_checked(self, check_float, ("offset",))
        put_checked(self, check_float, ("momentum", "relabel_skills"), 0.0, 1.0)
        put_checked(self, optional(check_float), ("freeze_after_steps",), 0.0)
        put_checked(self, check_flag, ("standardize", "centre"))
        if self.hindsight is not None:
            raise ValueError("skills have no goals to relabel: leave hindsight=None.")
        if self.reward_scaling is not False:
            raise ValueError(
                f"reward_scaling={self.reward_scaling!r}: the rewards of skills are intrinsic, and "
                f"`standardize` scales them: leave reward_scaling=False."
            )
        super().__post_init__()

    def _backbone_defaults(self, on_sac: bool) -> dict[str, Any]:
        """Settings that depend on the backbone."""
        return {"least_potential": -50.0, "centre": True, "offset": 1.0}

    @property
    def on_sac(self) -> bool:
        """Whether the backbone is SAC."""
        return isinstance(self.algorithm, SAC)

    # ------------------------------------------------------------------ state

    @property
    def learn_until(self) -> float:
        """Environment steps after which the skills are frozen."""
        return math.inf if self.freeze_after_steps is None else self.freeze_after_steps

    def check(self, spec: LevelSpec) -> None:
        super().check(spec)
        if spec.above is None or spec.above.latent_space is None:
            raise TypeError(
                f"{type(self).__name__} needs a level above it that plans in latent states, such "
                f"as PlannerLevel: its rewards come from that level's model."
            )

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> AlgorithmLearner:
        """Create the backbone's state for this place; consumes `key`."""
        key, key_skills = jax.random.split(key)
        skills = Skills(
            alternatives=self._alternatives(key_skills),
            moments=Moments.zero(),
            **init_settings(self, ("fixed_std", "momentum", "offset", "least_potential")),
        )
        return super().init_learner(key, spec).replace(skills=skills)

    def _alternatives(self, key: jax.Array) -> jax.Array:
        """Skills to compare with; consumes `key`."""
        if isinstance(self.skill_space, Discrete):
            return jnp.arange(self.skill_space.n, dtype=self.skill_space.dtype)
        return self.draw_skills(key, self.n_alternatives)

    def draw_skills(self, key: jax.Array, *shape: int) -> jax.Array:
        """Skills [*shape, *shape of a skill] from the prior; consumes `key`."""
        space = self.skill_space
        if isinstance(space, Discrete):
            return jax.random.randint(key, shape, 0, space.n, space.dtype)
        return jax.random.uniform(
            key, (*shape, *space.shape), space.dtype, space.low_array, space.high_array
        )

    def explores(self, ctx: Context) -> bool | jax.Array:
        """Whether a policy adds noise: in training, unless the skills are frozen."""
        if not ctx.training or self.freeze_after_steps is None:
            return super().explores(ctx)
        return ctx.explores & (ctx.env_steps < self.freeze_after_steps)

    # ---------------------------------------------------------------- rewards

    def potential(
        self,
        skills: Skills,
        model: PlannerLearner,
        start: jax.Array,
        context: jax.Array,
        skill: jax.Array,
        *ends: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """How much likelier an end is under its skill than under all compared, at most log(L + 1).

        phi(s') = log q(s'|s_0, z) - log of the mean of q(s'|s_0, .) over z and its alternatives,
        in standardized space. The network does not depend on s': it is evaluated once for each
        pair of start and skill.

        Args:
            skills: of this level's learner.
            model: learner of the level above.
            start: latent states s_0 of that level, [B, D].
            context: its contexts, [B, C].
            skill: z, [B, *shape of a skill].
            ends: latent states s', [B, D] each.

        Returns:
            phi [B] of each of `ends`, clipped below.
        """
        others = skills.alternatives
        batch, n_others = start.shape[0], others.shape[0]
        compared = jnp.concatenate(
            [skill[:, None], jnp.broadcast_to(others, (batch, *others.shape))], 1
        )

        def pairs(x):
            return jnp.broadcast_to(x[:, None], (batch, 1 + n_others, x.shape[-1]))

        predictor, ps, settings = model.predictor, model.ps, present_settings(skills)
        log_weight, mean, _ = predictor.standardized_mixture(
            ps, pairs(start), pairs(context), compared
        )
        out = []
        for end in ends:
            log_q = predictor.standardized_log_prob(
                ps, log_weight, mean, start[:, None], end[:, None], settings["fixed_std"]
            )
            relative = log_q[:, 1:] - log_q[:, :1]
            if isinstance(self.skill_space, Discrete):  # all skills, its own included
                phi = math.log(n_others) - jax.nn.logsumexp(relative, -1)
            else:
                relative = jnp.concatenate([jnp.zeros((batch, 1), jnp.float32), relative], -1)
                phi = math.log(n_others + 1) - jax.nn.logsumexp(relative, -1)
            out.append(jnp.maximum(phi, settings["least_potential"]))
        return tuple(out)

    def raw_reward(self, skills: Skills, model: PlannerLearner, rows: Row) -> jax.Array:
        """Intrinsic reward [B] of rows before it is standardized.

        Args:
            skills: of this level's learner.
            model: learner of the level above.
            rows: of this level.
        """
        raise TypeError(f"{type(self).__name__} does not define raw_reward.")

    def reward(self, learner: AlgorithmLearner, rows: Row, ctx: Context) -> jax.Array:
        """Intrinsic reward [B] from the present model of the level above, standardized."""
        return self._standardized(
            learner.skills, self.raw_reward(learner.skills, model_above(ctx), rows)
        )

    def _standardized(self, skills: Skills, raw: jax.Array) -> jax.Array:
        moments = skills.moments
        if self.centre:
            raw = raw - moments.mean
        if self.standardize:
            raw = raw / moments.std
        return raw + skills.settings["offset"]

    # --------------------------------------------------------------- learning

    def relabel(self, rows: Row, key: jax.Array) -> Row:
        """Rows [B] or pieces [T, B], some of them with another skill; consumes `key`."""
        lead = rows.terminated.shape
        key_skill, key_chosen = jax.random.split(key)
        skills = self.draw_skills(key_skill, *lead)
        chosen = jax.random.uniform(key_chosen, lead[-1:], jnp.float32) < self.relabel_skills
        if len(lead) == 2:
            # One skill for each stretch of control that a piece passes through.
            assert rows.control is not None
            begins = (rows.control.steps == 0).at[0].set(False)
            stretch = jnp.cumsum(begins.astype(jnp.int32), 0)
            skills = skills[stretch, jnp.arange(lead[1])]
        old = rows.level_input
        chosen = jnp.broadcast_to(chosen, lead).reshape(*lead, *[1] * (old.ndim - len(lead)))
        return rows.replace(level_input=jnp.where(chosen, skills, old))

    def learn(self, learner: AlgorithmLearner, replay: Replay, ctx: Context):
        """Make one update; consumes the key."""
        key_rows, key_skills, key_next, key_update = jax.random.split(ctx.key, 4)
        model = model_above(ctx)
        skills = learner.skills.replace(alternatives=self._alternatives(key_skills))
        skills = observe_schedules(self, skills, ctx.env_steps)
        relabel = self.relabel if self.relabel_skills else None
        rows, mask = self.sample(replay, key_rows, relabel, rewarded=False)
        flat = jax.tree.map(lambda x: x.reshape(mask.size, *x.shape[mask.ndim :]), rows)
        raw = self.raw_reward(skills, model, flat)
        moments = skills.moments.update(raw, mask.reshape(-1), skills.settings["momentum"])
        skills = skills.replace(moments=moments)
        rows = rows.replace(rew=self._standardized(skills, raw).reshape(mask.shape))
        state = self.algorithm.at(learner.state, ctx.env_steps)
        learner = learner.replace(state=state, skills=skills)
        learner, metrics = self.update(learner, model, rows, mask, key_next, key_update)
        metrics = {"reward_mean": moments.mean, "reward_std": moments.std, **metrics}
        return learner, metrics

    def update(
        self,
        learner: AlgorithmLearner,
        model: PlannerLearner,
        rows: Row,
        mask: jax.Array,
        key_next: jax.Array,
        key_update: jax.Array,
    ) -> tuple[AlgorithmLearner, dict[str, jax.Array]]:
        """One update of the backbone; consumes the keys. Returns learner and metrics."""
        raise TypeError(f"{type(self).__name__} does not define update.")


def model_above(ctx: Context) -> PlannerLearner:
    """Learner of the level above, with its model as it is now."""
    assert ctx.above is not None  # `check` has seen to that
    return ctx.above.learner.at(ctx.env_steps)
