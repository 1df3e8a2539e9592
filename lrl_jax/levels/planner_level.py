"""A level that plans with a learned model: random at first, then model-predictive control."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrl_jax import struct
from lrl_jax.buffers import Replay, Row
from lrl_jax.env_spec import GoalIndices
from lrl_jax.levels.base import (
    Context,
    Decision,
    Level,
    LevelSpec,
    discount_of,
    discounted_steps,
)
from lrl_jax.levels.normalised import check_entries, check_normalised, hook, statistics_of
from lrl_jax.models.running_statistics import RunningStatistics, without_bounds
from lrl_jax.planners import ICEM, BlackboxPlanner, PlanState, PredictorRollout
from lrl_jax.planners.blackbox import check_aux_rewards, check_optimizer
from lrl_jax.predictors.factory import call_with
from lrl_jax.randomness import Salt
from lrl_jax.settings import (
    check_choice,
    check_flag,
    check_float,
    check_function,
    check_int,
    check_kind,
    optional,
    put_checked,
)
from lrl_jax.spaces import Box, Discrete, Space, mapped_space

# Settings that become leaves of the learner.
_LEAVES = (
    "warm_up_steps",
    "no_planning_steps",
    "switch_planner_prob",
    "switch_random_prob",
    "resample_random_action_prob",
)

_FLAGS = (
    "deterministic",
    "use_value",
    "use_termination",
    "alternate_with_noise",
    "only_noise",
    "resample_on_end",
    "pursues_input",
)

DEFAULT_OPTIMIZER = ICEM(horizon=15)


class PlannerLearner(struct.Node):
    """What a planner level shares over instances.

    Attributes:
        ps: state of the predictor.
        settings: those of the level that are read while acting, float32 [] each.
        predictor: for this place (static).
        spec: the place (static).
        statistics: running ones of the level's rows, where it keeps any.
    """

    ps: Any
    settings: dict[str, jax.Array]
    predictor: Any = struct.field(pytree_node=False)
    spec: LevelSpec = struct.field(pytree_node=False)
    statistics: RunningStatistics = struct.field(default_factory=RunningStatistics)

    @property
    def gamma(self) -> jax.Array:
        """The predictor's discount, float32 []."""
        return self.predictor.setting(self.ps, "gamma")

    def at(self, env_steps: jax.Array) -> PlannerLearner:
        """With the predictor's schedules at `env_steps` environment steps, float32 []."""
        return self.replace(ps=self.predictor.observe_env_steps(self.ps, env_steps))

    def latent(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latent states [..., D] and contexts [..., C] of mapped observations [..., *obs_shape].

        Where the level has an input, the context is that of an input of zeros.
        """
        lead = obs.shape[: obs.ndim - len(self.spec.obs_shape)]
        flat = self.statistics.see(obs.reshape(-1, math.prod(self.spec.obs_shape)))
        if self.spec.input_space is not None:
            flat = jnp.pad(flat, ((0, 0), (0, self.spec.input_space.dim)))
        s, c = self.predictor.encode(self.ps, flat)
        return s.reshape(*lead, -1), c.reshape(*lead, -1)


class PlannerMemory(struct.Node):
    """What a planner level keeps of one instance within an episode."""

    plan_state: PlanState  # warm start of the next plan
    plan: jax.Array  # [H, *A] plan of the last decision; a random action held, if it was one
    random_action: jax.Array  # [*A] action held in random mode
    fresh: jax.Array  # [] bool, no random action has been drawn yet
    planning_mode: jax.Array  # [] bool, mode of the last decision
    n_held: jax.Array  # [] int32, decisions made with the first action of the plan, modulo `hold`


@dataclasses.dataclass(frozen=True)
class FullRows:
    """Which rows took `least` environment steps, or ended in a terminal state."""

    least: int

    def __call__(self, rows: Row) -> jax.Array:
        """Of rows [B], bool."""
        return (rows.elapsed_env_steps >= self.least) | rows.terminated


@dataclasses.dataclass(frozen=True)
class WithInput:
    """Rows with the level's input appended to their observations, as the predictor sees them."""

    space: Space
    bootstraps: bool = False  # whether values after rows matter

    def one(self, obs: jax.Array, level_input: Any) -> jax.Array:
        """Observations [..., O] and inputs [..., *input shape] to [..., O + I]."""
        if isinstance(self.space, Discrete):
            level_input = jax.nn.one_hot(level_input, self.space.n)
        else:
            lead = level_input.shape[: level_input.ndim - len(self.space.shape)]
            level_input = level_input.reshape(*lead, self.space.dim)
        return jnp.concatenate([obs.astype(jnp.float32), level_input.astype(jnp.float32)], -1)

    def __call__(self, rows: Row, replay: Replay) -> Row:
        """The same rows, seen with their input.

        In pieces [T, B], where values bootstrap, next observations are seen with the next row's
        input; in the model's rows [B] with the row's own.
        """
        lead, following = rows.terminated.shape, rows.level_input
        if self.bootstraps and len(lead) == 2:
            following = replay.next_input(rows)
        obs, obs_next = (x.reshape(*lead, -1) for x in (rows.obs, rows.obs_next))
        return rows.replace(
            obs=self.one(obs, rows.level_input), obs_next=self.one(obs_next, following)
        )


class AsPredicted(struct.Node):
    """Rows as the predictor sees them: normalised, and with the level's input.

    Attributes:
        statistics: running ones of the level.
        with_input: how inputs are appended; None without an input (static).
    """

    statistics: RunningStatistics
    with_input: WithInput | None = struct.field(pytree_node=False)

    def __call__(self, rows: Row, replay: Replay) -> Row:
        """The same rows."""
        if self.statistics.observations is not None:
            lead = rows.terminated.shape
            flat = (x.reshape(*lead, -1) for x in (rows.obs, rows.obs_next))
            obs, obs_next = (self.statistics.see(x) for x in flat)
            rows = rows.replace(obs=obs, obs_next=obs_next)
        return rows if self.with_input is None else self.with_input(rows, replay)


@dataclasses.dataclass(frozen=True)
class PlannerLevel(Level):
    """Decides by planning with a learned predictor, and learns that predictor from its rows.

    In evaluation it always plans. In training it acts at random while the total of environment
    steps is below `warm_up_steps`, and plans from then on; with `alternate_with_noise` each
    instance tosses its own coins instead (see `switch_planner_prob`); with `only_noise` it never
    plans. Every episode starts in random mode, so with small switch probabilities and short
    episodes it rarely plans. The predictor's reward is the reward per elapsed environment step.

    With `pursues_input` it plans towards subgoals, latent states that the level above sends, rather
    than for the environment's reward. Its predictor's encoder then finds the subgoal appended to
    the observation.

    Attributes:
        predictor_factory: (mapped observation shape, action space) -> predictor; hashable. One
            that names a keyword `goal_indices` gets where goals are in what the predictor sees,
            a `lrl_jax.env_spec.GoalIndices`; what `level_input_space` appends belongs to the
            desired goal, and is all of it with `pursues_input`.
        optimizer: `CEM`, `ICEM` (the default, horizon 15) or, for a Discrete action space,
            `CategoricalCEM`.
        deterministic: whether plans are rolled out without sampling.
        mode: prediction of a mixture, its "heaviest" component or its "mean".
        use_value, use_termination: whether the value of the last state and the probability of
            termination enter the cost of a plan.
        hold: decisions that each action of a plan is held for. With more than one, plans look
            `hold` times as far ahead and are replanned every `hold` decisions.
        aux_rewards: pairs (weight, fn), fn(rollout, plans) -> [N], added to a plan's return.
        buffer_size: rows of the replay buffer, over all instances.
        update_interval, n_updates: updates owed: `n_updates` for each `update_interval` rows.
        batch_size: partial trajectories in a batch of the value and the reward network.
        model_batch_size: rows in a batch of the model.
        warm_up_steps: total environment steps with random actions.
        no_planning_steps: total environment steps until which `alternate_with_noise` stays random.
        alternate_with_noise: whether instances alternate between planning and random actions.
        only_noise: whether training acts at random only.
        switch_planner_prob: probability per decision of switching from random to planning.
        switch_random_prob: probability per decision of switching from planning to random.
        resample_random_action_prob: probability that random mode draws a new action; else the
            previous random action is held.
        resample_on_end: random mode draws a new action at the start of an episode only.
        stagger: first training episodes are cut short by random multiples of a decision's length,
            so that instances do not go through their episodes in lockstep.
        control_interval: rows after which control goes back to the level above; None: never.
        full_row_env_steps: environment steps of a full row; shorter rows that did not terminate
            are left out of the model's loss. None: derived from the control intervals below;
            1: all rows count.
        chunk_size: instances that plan at a time. None: as many as it takes to fill the device
            with candidates.
        level_input_space: what a level above sends, appended to the observation that the
            predictor sees (one-hot if Discrete). None: no input.
        pursues_input: whether the reward is minus the distance between the latent state after a
            row and the level's input, not the environment's.
        reward_discount: see `Level`; the reward per environment step is divided by the sum of the
            weights.
        eval_aux_rewards: in place of aux_rewards in evaluation, where bonuses for exploring do not
            belong; None for the same.
        running_normaliser: whether the predictor sees entries of the observation without finite
            bounds normalised by their running mean and std, see `RunningStatistics`; latent states
            are in these units then.
        reward_scaling: whether rewards are divided by the running std of discounted returns.
        normaliser_clip: largest magnitude of what either gives.
    """

    predictor_factory: Callable[[tuple[int, ...], Space], Any]
    optimizer: Any = DEFAULT_OPTIMIZER
    deterministic: bool = True
    mode: str = "heaviest"
    use_value: bool = False
    use_termination: bool = False
    hold: int = 1
    aux_rewards: tuple[tuple[float, Callable], ...] = ()
    buffer_size: int = 100_000
    update_interval: int = 1
    n_updates: int = 1
    batch_size: int = 256
    model_batch_size: int = 1024
    warm_up_steps: float = 1000
    no_planning_steps: float = 0
    alternate_with_noise: bool = False
    only_noise: bool = False
    switch_planner_prob: float = 0.3
    switch_random_prob: float = 0.3
    resample_random_action_prob: float = 1.0
    resample_on_end: bool = False
    stagger: bool = False
    control_interval: int | None = None
    full_row_env_steps: int | None = None
    chunk_size: int | None = None
    level_input_space: Space | None = None
    pursues_input: bool = False
    reward_discount: Any = 1.0
    eval_aux_rewards: tuple[tuple[float, Callable], ...] | None = dataclasses.field(
        default=None, kw_only=True
    )
    running_normaliser: bool = dataclasses.field(default=False, kw_only=True)
    reward_scaling: bool = dataclasses.field(default=False, kw_only=True)
    normaliser_clip: float = dataclasses.field(default=10.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        put_checked(self, check_function, ("predictor_factory",))
        put_checked(self, check_optimizer, ("optimizer",), "init", "plan", "shift", "check")
        put_checked(self, check_int, ("hold", "buffer_size", "batch_size", "model_batch_size"), 1)
        put_checked(self, optional(check_int), ("full_row_env_steps", "chunk_size"), 1)
        put_checked(self, check_float, ("warm_up_steps", "no_planning_steps"), 0.0)
        probabilities = tuple(name for name in _LEAVES if name.endswith("_prob"))
        put_checked(self, check_float, probabilities, 0.0, 1.0)
        put_checked(self, check_choice, ("mode",), ("heaviest", "mean"))
        put_checked(self, check_flag, _FLAGS)
        put_checked(self, optional(check_kind), ("level_input_space",), Box, Discrete)
        put_checked(self, check_aux_rewards, ("aux_rewards",))
        put_checked(self, optional(check_aux_rewards), ("eval_aux_rewards",))
        if self.pursues_input and not isinstance(self.level_input_space, Box):
            raise TypeError(
                f"level_input_space={self.level_input_space!r}: subgoals need a Box, of the size "
                f"of the latent state."
            )
        check_normalised(self)
        if self.pursues_input and self.reward_scaling:
            raise ValueError(
                "reward_scaling=True, but with pursues_input rewards are distances to subgoals: "
                "leave reward_scaling=False."
            )

    @property
    def candidates(self) -> int:
        """Plans that a decision compares at a time; 1024 for an optimiser that does not say."""
        return getattr(self.optimizer, "num_samples", 1024)

    @property
    def acts_randomly(self) -> bool:
        """Whether training ever chooses random actions."""
        return self.warm_up_steps > 0 or self.alternate_with_noise or self.only_noise

    def input_space(self) -> Space | None:
        return self.level_input_space

    def check(self, spec: LevelSpec) -> None:
        self.optimizer.check(spec.action_space)
        check_entries(self, spec)
        if self.acts_randomly and not spec.action_space.is_bounded:
            raise ValueError(
                f"random actions cannot be drawn from the unbounded {spec.action_space}: bound it, "
                f"or use warm_up_steps=0 with neither alternate_with_noise nor only_noise."
            )
        predictor = self._predictor(spec)
        if self.use_value and getattr(predictor, "val_func", True) is None:
            raise ValueError(
                "use_value=True needs a value function, but the predictor has none: give the "
                "factory a partial_val_func, or use use_value=False."
            )
        if self.pursues_input:
            self._check_subgoals(predictor)
        rows = getattr(predictor, "k_steps", 1) + getattr(predictor, "n_steps", 1) - 1
        capacity, n = self.buffer_size // spec.n_env_instances, spec.n_env_instances
        if self.n_updates and rows > max(capacity, 1):
            raise ValueError(
                f"k_steps + n_steps - 1 = {rows} rows of a trajectory do not fit into "
                f"{capacity} rows for each of {n} instances: raise buffer_size="
                f"{self.buffer_size} to {rows * n} or more."
            )

    def _check_subgoals(self, predictor: Any) -> None:
        if self.control_interval is None:
            raise ValueError(
                "control_interval=None: a planner towards subgoals has to hand control back for "
                "the next one, after 4 decisions for example."
            )
        assert self.level_input_space is not None  # settings were checked
        dim = self.level_input_space.dim
        if predictor.latent_state_dim != dim:
            raise ValueError(
                f"subgoals have {dim} entries, but the predictor's latent state has "
                f"{predictor.latent_state_dim}: they must agree."
            )

    def _predictor(self, spec: LevelSpec) -> Any:
        """The predictor for this place."""
        shape, goals = spec.obs_shape, spec.goal_indices
        if self.level_input_space is not None:
            dim, size = self.level_input_space.dim, math.prod(shape)
            shape = (size + dim,)
            goals = (goals or GoalIndices(size)).with_input(dim, alone=self.pursues_input)
        return call_with(self.predictor_factory, shape, spec.action_space, goal_indices=goals)

    def own_writer(self, spec: LevelSpec) -> tuple[Any, int] | None:
        """The predictor's writer and `log_interval`."""
        predictor = self._predictor(spec)
        if getattr(predictor, "writer", None) is None:
            return None
        return predictor.writer, predictor.log_interval

    def init_learner(self, key: jax.Array, spec: LevelSpec) -> PlannerLearner:
        """Create the predictor for this place; consumes `key`."""
        predictor = self._predictor(spec)
        return PlannerLearner(
            ps=predictor.init(key),
            predictor=predictor,
            spec=dataclasses.replace(spec, above=None, below=None),
            settings={name: jnp.array(getattr(self, name), jnp.float32) for name in _LEAVES},
            statistics=statistics_of(self, spec.obs_box),
        )

    def latent_space(self, spec: LevelSpec) -> Box:
        """Space of the predictor's latent states; bounds are known where they are entries of it."""
        predictor = self._predictor(spec)
        dim = predictor.latent_state_dim
        if hasattr(predictor.encoder, "apply"):
            return Box(-math.inf, math.inf, (dim,))
        extra = 0 if spec.input_space is None else spec.input_space.dim

        def encode(obs):
            return predictor.encoder(jnp.pad(obs, (0, extra))[None])[0]

        box = spec.obs_box
        if self.running_normaliser:
            low, high = box.bounds
            open_ = np.where(without_bounds(box), np.inf, 0)
            box = Box(low - open_, high + open_, box.shape, "float32")
        return mapped_space(encode, (dim,), "float32", box)

    def init_memory(self, learner: PlannerLearner) -> PlannerMemory:
        """Memory at the start of an episode."""
        space = learner.spec.action_space
        shape = (self.optimizer.horizon, *space.shape)
        return PlannerMemory(
            plan_state=self.optimizer.init(space),
            plan=jnp.zeros(shape, space.dtype),
            random_action=jnp.zeros(space.shape, space.dtype),
            fresh=jnp.ones((), bool),
            planning_mode=jnp.zeros((), bool),
            n_held=jnp.zeros((), jnp.int32),
        )

    def draft(self, learner: PlannerLearner, memory: PlannerMemory, obs: Any, ctx: Context):
        """Toss the coins, and draw the action in random mode; a plan is needed elsewhere."""
        del obs
        space = learner.spec.action_space
        if not ctx.training or not space.is_bounded:
            planning = jnp.ones((), bool)
            memory = memory.replace(planning_mode=planning)
            return self._held(memory.random_action, memory, planning)
        key_mode, key_redraw, key_action = jax.random.split(self._own_key(ctx.key), 3)
        planning = self._next_mode(learner, memory, key_mode, ctx) | ~ctx.explores
        redraw = memory.fresh
        if not self.resample_on_end:
            coin = jax.random.uniform(key_redraw, (), jnp.float32)
            redraw |= coin < learner.settings["resample_random_action_prob"]
        drawn = jnp.where(redraw, space.sample(key_action), memory.random_action)
        action = jnp.where(planning, memory.random_action, drawn)
        # A random decision makes the kept plan worthless.
        plan_state = jax.tree.map(
            lambda kept, new: jnp.where(planning, kept, new),
            memory.plan_state,
            self.optimizer.init(space),
        )
        memory = memory.replace(
            plan_state=plan_state,
            plan=jnp.where(planning, memory.plan, action),
            random_action=action,
            fresh=memory.fresh & planning,
            planning_mode=planning,
        )
        return self._held(action, memory, planning)

    def _own_key(self, key: jax.Array) -> jax.Array:
        # `act` gets the same key: fold in a number that none of its splits reaches.
        return jax.random.fold_in(key, Salt.RANDOM_MODE)

    def _held(self, action, memory, planning):
        """What `draft` returns: no plan is needed while the last one's action is held."""
        store = {"planning_mode": planning}
        if self.hold == 1:
            return Decision(action, memory, store), memory, planning
        goes_on = planning & (memory.n_held > 0)
        n_held = jnp.where(planning, (memory.n_held + 1) % self.hold, 0)
        action = jnp.where(goes_on, memory.plan[0], action)
        memory = memory.replace(n_held=n_held)
        return Decision(action, memory, store), memory, planning & ~goes_on

    def _next_mode(self, learner, memory, key, ctx):
        """Whether the instance plans now, [] bool; consumes `key`."""
        if self.only_noise:
            return jnp.zeros((), bool)
        steps, settings = ctx.env_steps, learner.settings
        planning = jnp.ones((), bool)
        if self.alternate_with_noise:
            coin = jax.random.uniform(key, (), jnp.float32)
            to_planning = coin < settings["switch_planner_prob"]
            to_planning &= steps > settings["no_planning_steps"]
            goes_on = coin >= settings["switch_random_prob"]
            planning = jnp.where(memory.planning_mode, goes_on, to_planning)
        return planning & (steps >= settings["warm_up_steps"])

    def act(
        self, learner: PlannerLearner, memory: PlannerMemory, obs: Any, ctx: Context
    ) -> Decision:
        """Plan, starting from the kept plan moved by one step; consumes the key.

        It plans in any mode: random decisions are made by `draft`.
        """
        learner, planner = learner.at(ctx.env_steps), self._planner(learner, ctx.training)
        seen = self._seen(learner, obs, ctx.level_input)
        s, c = learner.predictor.encode(learner.ps, seen[None])
        plan, plan_state, _ = planner.plan(
            (learner.ps, s, c),
            planner.shift(memory.plan_state),
            ctx.key,
            learner.spec.action_space,
        )
        plan = plan.astype(memory.plan.dtype)
        planning = jnp.ones((), bool)
        memory = memory.replace(plan_state=plan_state, plan=plan, planning_mode=planning)
        return Decision(plan[0], memory, {"planning_mode": planning})

    def planned_states(
        self,
        learner: PlannerLearner,
        memory: PlannerMemory,
        obs: jax.Array,
        level_input: Any = None,
    ) -> jax.Array:
        """Latent states [H+1, D] that the kept plan leads to from `obs`, without sampling.

        With an ensemble, the mean over its members.
        """
        s, c = learner.predictor.encode(learner.ps, self._seen(learner, obs, level_input)[None])
        rollout_fn = PredictorRollout(learner.predictor, True, self.mode, False, False, self.hold)
        rollout = rollout_fn((learner.ps, s, c), memory.plan[None], jax.random.key(0))
        return rollout.state[0].mean((0, 1))

    def after_transition(
        self, learner: PlannerLearner, memory: PlannerMemory, row: Row, ctx: Context
    ):
        memory, hand_back = super().after_transition(learner, memory, row, ctx)
        if self.hold > 1:  # what was planned for another input is not held on to
            memory = memory.replace(n_held=jnp.where(hand_back, 0, memory.n_held))
        return memory, hand_back

    def reward(self, learner: PlannerLearner, rows: Row, ctx: Context) -> jax.Array:
        """Reward per environment step, scaled if asked, or minus the subgoal's distance, [B]."""
        if self.pursues_input:
            state, _ = learner.latent(rows.obs_next)
            return -jnp.linalg.norm(state - rows.level_input.reshape(state.shape), axis=-1)
        discount = discount_of(self, learner)
        rew = rows.rew / discounted_steps(discount, rows.elapsed_env_steps)
        return learner.statistics.scaled(rew)

    @property
    def update_statistics(self) -> Any:
        """How rows enter the running statistics; None where the level keeps none."""
        return hook(self, self._update_statistics)

    def _update_statistics(self, learner: PlannerLearner, rows: Row, mask: jax.Array, ctx: Context):
        obs = rows.obs.reshape(*mask.shape, -1)
        new = learner.statistics.update(obs, mask, rows.discounted_return)
        return learner.replace(statistics=new)

    def learn(
        self, learner: PlannerLearner, replay: Replay, ctx: Context
    ) -> tuple[PlannerLearner, dict[str, jax.Array]]:
        """Make one update of the predictor, which draws from the key in its own state."""
        with_input = None
        if self.level_input_space is not None:
            bootstraps = self.use_value and not self.pursues_input
            with_input = WithInput(self.level_input_space, bootstraps)
        if with_input is not None or self.running_normaliser:
            replay = replay.through(AsPredicted(learner.statistics, with_input))
        ps, (loss, info) = learner.predictor.learn(
            learner.ps,
            replay,
            1,
            self.batch_size,
            self.model_batch_size,
            ctx.env_steps,
            model_mask_fn=self._model_mask(learner.spec),
        )
        metrics = {name: jnp.float32(value) for name, value in {"loss": loss, **info}.items()}
        return learner.replace(ps=ps), metrics

    def _model_mask(self, spec: LevelSpec) -> Callable | None:
        """Which rows the model learns from; equal for equal settings, None for all."""
        least = self.full_row_env_steps or spec.decision_env_steps or 1
        return FullRows(least) if least > 1 else None

    def _planner(self, learner, training):
        aux_rewards = self.aux_rewards
        if not training and self.eval_aux_rewards is not None:
            aux_rewards = self.eval_aux_rewards
        rollout_fn = PredictorRollout(
            learner.predictor,
            self.deterministic,
            self.mode,
            self.use_value,
            self.use_termination,
            self.hold,
        )
        return BlackboxPlanner(
            self.optimizer, rollout_fn, aux_rewards, self.use_value, self.use_termination
        )

    def _seen(self, learner, obs, level_input):
        """Observation of the predictor: one instance's, with the level's input appended."""
        if self.running_normaliser:
            obs = learner.statistics.see(obs.reshape(-1))
        if self.level_input_space is None:
            return obs
        return WithInput(self.level_input_space).one(obs.reshape(-1), level_input)
