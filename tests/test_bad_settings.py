"""Bad values of every field of every settings class, and of calls: refused by name, untraced."""

import dataclasses
import functools
import inspect
import math

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax import algorithms, levels, models, nets, planners, predictors, schedules
from lrl_jax.collectors import evaluate, init_carry, rollout
from lrl_jax.planners import BlackboxPlanner
from lrl_jax.predictors import get_default_predictor_factory
from lrl_jax.spaces import Box, Discrete

BOX = Box(-1, 1, (2,))
PAIR = np.array([1.0, 2.0])


class Loose(dict):
    """Can be called, but not hashed."""

    def __call__(self, *args):
        return 0.0


ALWAYS = {
    "text": "x",
    "a list": [],
    "a dict": {},
    "complex": 1j,
    "two numbers": PAIR,
    "an object": object(),
    "bytes": b"5",
    "a digit": "5",
    "a class": dict,
}
NUMBER = ALWAYS | {"nan": math.nan, "-inf": -math.inf, "True": True, "huge": 10**400}
BAD = {
    "whole": NUMBER | {"a fraction": 1.5, "inf": math.inf, "2**70": 2**70, "jnp": jnp.array(0.5)},
    "real": NUMBER | {"inf": math.inf, "1e300": 1e300},
    "steps": NUMBER | {"-1": -1, "np": np.float32(-1)},
    "rate": {k: v for k, v in NUMBER.items() if k != "a class"} | {"loose": Loose(), "-1": -1},
    "flag": ALWAYS | {"nan": math.nan, "2": 2, "0": 0, "np": np.int32(1), "jnp": jnp.array(1.0)},
    "choice": ALWAYS | {"3": 3, "nan": math.nan, "jnp": jnp.array(1.0)},
    "widths": {k: v for k, v in ALWAYS.items() if k not in ("a list", "two numbers")}
    | {"half": [0.5], "none of it": (0,), "flags": (True,), "nested": ((8,),), "wide": (2**70,)},
    "function": {k: v for k, v in ALWAYS.items() if k != "a class"} | {"3": 3, "loose": Loose()},
    "activation": {k: v for k, v in ALWAYS.items() if k != "a class"} | {"3": 3, "loose": Loose()},
    "range": {k: v for k, v in ALWAYS.items() if k != "two numbers"}
    | {"3": 3, "back": (2, 1), "one": (1,), "half": (0.5, 1), "below": (-1, 1)},
    "periods": {k: v for k, v in ALWAYS.items() if k not in ("a list", "two numbers")}
    | {"3": 3, "zero": (0,), "nan": (math.nan,), "texts": ("1",)},
    "kind": ALWAYS | {"3": 3},
    "optimizer": ALWAYS | {"3": 3, "nan": math.nan, "CEM itself": planners.CEM},
    "pairs": {k: v for k, v in ALWAYS.items() if k != "a list"}
    | {"3": 3, "one": ((1.0,),), "no function": ((1.0, 3),), "no weight": (("x", len),)},
    "sigma": NUMBER | {"zero": 0, "zeros": (0, 0), "texts": ("1",)},
    "discount": NUMBER | {"2": 2, "-1": -1},
    "schedule": {k: v for k, v in ALWAYS.items() if k not in ("a list", "two numbers")}
    | {"3": 3, "nan": (math.nan,), "texts": ("1", "2")},
    "actions": {k: v for k, v in ALWAYS.items() if k not in ("a list", "two numbers")}
    | {"nested": ((1,), (1, 2)), "texts": ("1", "2")},
}
# None where a field has another default.
NOT_NONE = set(BAD) - {"kind"}

LEVEL = {"whole": "buffer_size chunk_size"}
LEARNER = {
    "kind": "algorithm hindsight",
    "whole": "buffer_size update_interval n_updates batch_size control_interval chunk_size",
    "real": "warm_up_steps normaliser_clip",
    "flag": "running_normaliser reward_scaling",
    "discount": "reward_discount",
}
SKILLS = {
    "whole": LEARNER["whole"] + " n_alternatives",
    "real": "warm_up_steps least_potential momentum offset relabel_skills freeze_after_steps "
    "normaliser_clip",
    "rate": "fixed_std",
    "flag": "standardize centre running_normaliser reward_scaling",
    "kind": "algorithm hindsight skill_space",
    "discount": "reward_discount",
}
CEM = {
    "whole": "horizon num_samples n_iterations",
    "real": "elite_ratio alpha keep_elites shift_elites",
    "choice": "return_mode",
}
RATES = "encoder_lr reward_lr model_lr value_lr delta_standardizer_lr"
PARTS = {
    "function": "val_func rew_func encoder",
    "whole": "latent_state_dim context_dim log_interval",
}
FACTORY = get_default_predictor_factory(lrl.make("Maze2D-Simple-v0"), 0)
SPLATES = functools.partial(levels.SPlaTESLevel, "sac")
TABLE = {
    levels.RandomLevel: (levels.RandomLevel, LEVEL),
    levels.ConstantLevel: (
        functools.partial(levels.ConstantLevel, action=1),
        LEVEL | {"actions": "action"},
    ),
    levels.ActionSequenceLevel: (
        functools.partial(levels.ActionSequenceLevel, actions=(1,)),
        {"whole": "repeat buffer_size chunk_size", "actions": "actions"},
    ),
    levels.ActionRepeatLevel: (
        functools.partial(levels.ActionRepeatLevel, control_interval=2),
        {"whole": "control_interval buffer_size chunk_size"},
    ),
    levels.SACLevel: (levels.SACLevel, LEARNER | {"kind": "algorithm hindsight level_input_space"}),
    levels.DQNLevel: (levels.DQNLevel, LEARNER | {"kind": "algorithm hindsight level_input_space"}),
    levels.TDMPC2Level: (
        levels.TDMPC2Level,
        LEARNER | {"kind": "algorithm hindsight level_input_space"},
    ),
    levels.DADSLevel: (functools.partial(levels.DADSLevel, "sac"), SKILLS),
    levels.SPlaTESLevel: (
        SPLATES,
        SKILLS
        | {
            "whole": SKILLS["whole"] + " n_fresh_skills",
            "flag": SKILLS["flag"] + " averaged_value",
            "choice": "reward_mode act_by",
        },
    ),
    levels.PPOLevel: (
        levels.PPOLevel,
        {
            "kind": "algorithm level_input_space",
            "whole": "rollout_length control_interval",
            "steps": "learn_from learn_until",
            "flag": LEARNER["flag"],
            "real": "normaliser_clip",
            "discount": "reward_discount",
        },
    ),
    levels.PlannerLevel: (
        functools.partial(levels.PlannerLevel, predictor_factory=FACTORY),
        {
            "function": "predictor_factory",
            "optimizer": "optimizer",
            "flag": "deterministic use_value use_termination alternate_with_noise only_noise "
            "resample_on_end stagger pursues_input running_normaliser reward_scaling",
            "choice": "mode",
            "whole": "hold buffer_size update_interval n_updates batch_size model_batch_size "
            "control_interval full_row_env_steps chunk_size",
            "real": "warm_up_steps no_planning_steps switch_planner_prob switch_random_prob "
            "resample_random_action_prob normaliser_clip",
            "pairs": "aux_rewards eval_aux_rewards",
            "kind": "level_input_space",
            "discount": "reward_discount",
        },
    ),
    algorithms.SAC: (
        algorithms.SAC,
        {
            "widths": "hidden",
            "activation": "activation",
            "whole": "n_critics",
            "rate": "gamma tau learning_rate temperature_learning_rate",
            "real": "temperature target_entropy log_std_min log_std_max",
            "flag": "learn_temperature smdp_discount",
            "choice": "compute_dtype",
        },
    ),
    algorithms.DQN: (
        algorithms.DQN,
        {
            "widths": "hidden",
            "activation": "activation",
            "flag": "double dueling smdp_discount",
            "rate": "gamma tau learning_rate epsilon",
            "whole": "target_interval",
            "choice": "loss compute_dtype",
            "real": "max_grad_norm",
        },
    ),
    algorithms.PPO: (
        algorithms.PPO,
        {
            "widths": "hidden",
            "activation": "activation",
            "rate": "gamma gae_lambda clip value_coefficient entropy_coefficient max_grad_norm "
            "learning_rate value_clip",
            "whole": "n_epochs n_minibatches",
            "flag": "normalise_advantages smdp_discount",
            "choice": "compute_dtype",
            "real": "adam_epsilon log_std_start",
        },
    ),
    algorithms.TDMPC2: (
        algorithms.TDMPC2,
        {
            "widths": "hidden encoder_hidden",
            "whole": "latent_dim group_size n_critics",
            "kind": "two_hot planner",
            "flag": "learn_termination smdp_discount",
            "choice": "compute_dtype",
            "real": "log_std_min log_std_max consistency_weight reward_weight value_weight "
            "termination_weight dropout max_grad_norm",
            "rate": "gamma tau rho learning_rate encoder_rate_factor policy_learning_rate "
            "entropy_coefficient",
        },
    ),
    algorithms.Hindsight: (
        functools.partial(algorithms.Hindsight, len, (0, 1), (1, 2)),
        {
            "function": "reward_fn terminated_fn",
            "range": "achieved_goal desired_goal",
            "real": "ratio",
        },
    ),
    planners.CEM: (
        functools.partial(planners.CEM, horizon=2),
        CEM
        | {
            "real": CEM["real"] + " noise_beta sample_decay",
            "sigma": "sigma",
            "choice": "return_mode sampling",
            "flag": "mean_candidate",
        },
    ),
    planners.CategoricalCEM: (
        functools.partial(planners.CategoricalCEM, horizon=2),
        CEM | {"real": CEM["real"] + " explore min_prob"},
    ),
    planners.MPPI: (
        planners.MPPI,
        {
            "whole": "horizon num_samples num_policy_samples num_elites n_iterations",
            "real": "temperature min_std max_std",
        },
    ),
    BlackboxPlanner: (
        functools.partial(BlackboxPlanner, planners.CEM(2), len),
        {
            "optimizer": "optimizer",
            "function": "rollout_fn",
            "pairs": "aux_rewards",
            "flag": "use_value use_termination",
        },
    ),
    planners.KnownModelRollout: (
        functools.partial(planners.KnownModelRollout, len),
        {"function": "step_fn value_fn"},
    ),
    planners.PredictorRollout: (
        functools.partial(planners.PredictorRollout, object()),
        {
            "flag": "deterministic with_value with_termination",
            "choice": "mode",
            "whole": "hold",
        },
    ),
    models.ProbabilisticEnsemble: (
        models.ProbabilisticEnsemble,
        {
            "whole": "latent_state_dim context_dim n_models n_modes n_particles",
            "kind": "action_space",
            "widths": "hidden",
            "activation": "activation",
            "flag": "use_context learn_termination partition_batch",
            "real": "log_std_min log_std_max running_std_momentum sb_start_duration "
            "sb_start_factor sb_start_std",
            "choice": "deterministic_mode compute_dtype",
            "periods": "periods",
        },
    ),
    predictors.RewardPredictor: (
        predictors.RewardPredictor,
        PARTS
        | {
            "rate": "gamma tau " + RATES,
            "whole": PARTS["whole"] + " k_steps n_steps encoder_warm_up",
            "real": "consistency_loss_weight value_loss_weight rew_loss_weight clip_grad_max_norm "
            "state_noise",
            "flag": "learn_encoder delta_standardizer smdp_discount",
            "widths": "mapped_env_obs_shape",
        },
    ),
    predictors.StaticPredictor: (
        predictors.StaticPredictor,
        PARTS | {"widths": "mapped_env_obs_shape"},
    ),
    predictors.IndexEncoder: (
        predictors.IndexEncoder,
        {
            "range": "state context",
            "whole": "latent_state_dim context_dim",
            "widths": "mapped_env_obs_shape",
            "kind": "goal_indices",
        },
    ),
    predictors.IdentityEncoder: (
        predictors.IdentityEncoder,
        {"whole": "latent_state_dim context_dim", "widths": "mapped_env_obs_shape"},
    ),
    predictors.PredictorFactory: (
        functools.partial(dataclasses.replace, FACTORY),
        {
            "function": "partial_model partial_val_func partial_rew_func partial_encoder "
            "partial_predictor",
            "whole": "latent_state_dim context_dim",
            "kind": "goal_indices",
        },
    ),
    nets.RewardFunction: (
        nets.RewardFunction,
        {
            "widths": "hidden",
            "activation": "activation",
            "flag": "use_context relative",
            "periods": "periods",
            "choice": "compute_dtype",
        },
    ),
    nets.ValueFunction: (
        nets.ValueFunction,
        {
            "widths": "hidden",
            "activation": "activation",
            "periods": "periods",
            "choice": "compute_dtype",
        },
    ),
    nets.TwoHot: (nets.TwoHot, {"whole": "num_bins", "real": "low high"}),
    schedules.ConstantSchedule: (
        functools.partial(schedules.ConstantSchedule, 1),
        {"real": "value"},
    ),
    schedules.RampSchedule: (
        functools.partial(schedules.RampSchedule, 1, 2, 3),
        {"real": "start_value end_value end start"},
    ),
    schedules.PiecewiseLinearSchedule: (
        functools.partial(schedules.PiecewiseLinearSchedule, (1, 2), (1, 2)),
        {"schedule": "steps values"},
    ),
}
# What is not checked by its own class, with the reason.
ELSEWHERE = {
    (predictors.RewardPredictor, "model"): "any object with the methods of a model",
    (predictors.StaticPredictor, "model"): "any object with the methods of a model",
    **{
        (kind, name): "means something to the host alone"
        for kind in (predictors.RewardPredictor, predictors.StaticPredictor)
        for name in ("device", "writer")
    },
    (planners.PredictorRollout, "predictor"): "any object with the methods of a predictor",
    (levels.DADSLevel, "level_input_space"): "replaced by skill_space",
    (levels.SPlaTESLevel, "level_input_space"): "replaced by skill_space",
}


def _fine(name: str, kind: str, label: str) -> bool:
    """Whether a value is right for a field, though it is wrong for others of the same kind."""
    if kind == "range" and name in ("state", "context"):
        # Names of parts of the environment; nothing as a context; ranges in a list.
        return label in ("text", "a digit") or (label == "a list" and name == "context")
    if name.startswith("partial_"):
        return label == "loose"  # settings or functions of a user's
    if kind == "widths" and name == "mapped_env_obs_shape":
        return label == "none of it"  # an empty observation is strange, but a shape
    return kind == "sigma" and label == "two numbers"  # one per entry of an action


def _rows():
    """Class and field: what makes an instance, and the bad values."""
    for cls, (build, kinds) in TABLE.items():
        for kind, names in kinds.items():
            for name in names.split():
                values = {k: v for k, v in BAD[kind].items() if not _fine(name, kind, k)}
                default = inspect.signature(cls).parameters[name].default
                optional = "None" in str(cls.__annotations__.get(name, ""))
                if kind in NOT_NONE and default not in (None, inspect.Parameter.empty):
                    values |= {} if optional else {"None": None}
                yield pytest.param(build, name, values, id=f"{cls.__name__}-{name}")


def _wrongly_taken(call, name: str, values: dict) -> dict:
    """Values that are accepted, or refused with another error or without the name."""
    wrong = {}
    for label, value in values.items():
        try:
            wrong[label] = f"accepted: {call(**{name: value})}"
        except (ValueError, TypeError) as error:
            if name.removeprefix("partial_") not in str(error):
                wrong[label] = error
        except Exception as error:
            wrong[label] = error
    return wrong


ROWS = list(_rows())


@pytest.mark.parametrize(("build", "name", "values"), ROWS)
def test_bad_settings_are_refused_by_name(build, name, values):
    assert not _wrongly_taken(build, name, values)


def test_the_table_knows_every_field():
    for cls, (_, kinds) in TABLE.items():
        known = {name for names in kinds.values() for name in names.split()}
        fields = {f.name for f in dataclasses.fields(cls) if f.init} - {"parent", "name"}
        missing = {f for f in fields - known if (cls, f) not in ELSEWHERE}
        assert not missing, (cls, missing)


def test_the_table_knows_every_class():
    public = {
        value
        for module in (levels, algorithms, planners, models, predictors)
        for value in map(functools.partial(getattr, module), module.__all__)
        if dataclasses.is_dataclass(value)
        and isinstance(value, type)
        and value.__dataclass_params__.frozen
    }
    from lrl_jax.struct import Node

    settings = {c for c in public if not issubclass(c, Node) and not inspect.isabstract(c)}
    left = {c.__name__ for c in settings - set(TABLE)}
    assert left <= set(EXCUSED), left - set(EXCUSED)


EXCUSED = {
    "Features": "made by levels",
    "LevelSpec": "made by the hierarchy",
    "SkillValue": "made by levels",
    "LearnerLevel": "abstract",
    "SkillLevel": "abstract",
    "Predictor": "abstract",
    "PiecewiseLogLinearSchedule": "checks what PiecewiseLinearSchedule does",
}

SCALARS = {"np": np.int64(3), "np 0-d": np.array(3), "jnp 0-d": jnp.array(3), "1.0": 3.0}


@pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS)
def test_scalars_become_numbers_of_python(value):
    for made, name in (
        (levels.RandomLevel(buffer_size=value), "buffer_size"),
        (SPLATES(warm_up_steps=value), "warm_up_steps"),
        (levels.PPOLevel(learn_from=value), "learn_from"),
        (algorithms.DQN(learning_rate=value), "learning_rate"),
        (planners.CEM(value), "horizon"),
        (models.ProbabilisticEnsemble(n_modes=value), "n_modes"),
    ):
        assert type(getattr(made, name)) in (int, float) and getattr(made, name) == 3
        hash(made)
    assert algorithms.SAC(hidden=[value, 4]).hidden == (3, 4)
    assert algorithms.SAC(hidden=np.array([8, 4])).hidden == (8, 4)


def test_flags_of_arrays_become_flags_of_python():
    made = algorithms.DQN(double=np.bool_(False), dueling=jnp.array(True))
    assert (made.double, made.dueling) == (False, True) and type(made.double) is bool


@pytest.mark.parametrize(
    "make",
    [
        lambda x: algorithms.SAC(gamma=x),
        lambda x: levels.RandomLevel(buffer_size=x),
        lambda x: levels.PlannerLevel(FACTORY, warm_up_steps=x),
        lambda x: predictors.RewardPredictor(smdp_discount=x > 0),
    ],
)
def test_traced_settings_are_refused_with_the_way_out(make):
    with pytest.raises(TypeError, match="vmap over the leaf"):
        jax.vmap(lambda x: make(x) and x)(jnp.ones(2))


# ------------------------------------------------------------------------------ calls


@functools.cache
def car():
    env, params = gymnax.make("MountainCarContinuous-v0")
    return lrl.Hierarchy([levels.RandomLevel()], env, params)


@functools.cache
def collector():
    return lrl.Collector(car(), n_env_instances=2)


@functools.cache
def state():
    return car().init(jax.random.key(0), 2)


def hierarchy(**settings):
    return lrl.Hierarchy([levels.RandomLevel()], car().env, car().env_params, **settings)


CALLS = {
    "Hierarchy": (
        hierarchy,
        {"flag": "training", "sequence": "signals env_obs_maps mapped_env_obs_shapes"},
    ),
    "init": (
        lambda **k: car().init(jax.random.key(0), **({"n_env_instances": 2} | k)),
        {"whole": "n_env_instances", "sequence": "learners"},
    ),
    "set_n_env_instances": (
        lambda **k: car().set_n_env_instances(state(), **k),
        {"whole": "n_env_instances"},
    ),
    "Collector": (
        lambda **k: lrl.Collector(car(), **k),
        {
            "whole": "n_env_instances checkpoint_interval",
            "flag": "exploration_noise",
            "function": "preprocess_fn",
        },
    ),
    "collect": (
        lambda **k: collector().collect(**({} if "n_total_steps" in k else {"n_steps": 4} | k)),
        {
            "long": "n_steps n_steps_start",
            "whole": "log_interval test_interval n_test_steps",
            "flag": "learn verbose random no_grad env_expects_numpy",
            "record": "record_transitions",
            "callback": "post_step_callback",
            "real": "render",
            "choice": "episode_allocation",
        },
    ),
    "collect episodes": (
        lambda **k: collector().collect(**{"n_episodes": 2, **k}),
        {"long": "n_episodes", "whole": "max_steps"},
    ),
    "evaluate": (
        lambda **k: evaluate(car(), state(), jax.random.key(0), **({"n_episodes": 2} | k)),
        {"whole": "n_episodes max_steps"},
    ),
    "init_carry": (
        lambda **k: init_carry(car(), jax.random.key(0), **k),
        {"whole": "n_env_instances"},
    ),
    "rollout": (
        lambda **k: rollout(car(), carry(), **({"n_steps": 2} | k)),
        {
            "whole": "n_steps learn_interval unroll",
            "flag": "learn",
            "record": "record",
        },
    ),
}
OF_CALLS = {
    "sequence": {"3": 3, "an object": object(), "a function": len, "nan": math.nan},
    "record": BAD["flag"],
    "callback": {k: v for k, v in BAD["function"].items() if k != "loose"},
    "long": BAD["whole"],  # 2**40 would be fine
}


@functools.cache
def carry():
    return init_carry(car(), jax.random.key(0), 2)


CALL_ROWS = [
    pytest.param(call, name, (BAD | OF_CALLS)[kind], id=f"{where}-{name}")
    for where, (call, kinds) in CALLS.items()
    for kind, names in kinds.items()
    for name in names.split()
]


@pytest.mark.parametrize(("call", "name", "values"), CALL_ROWS)
def test_bad_calls_are_refused_by_name(call, name, values):
    assert not _wrongly_taken(call, name, values)


def test_there_are_many_rows():
    assert sum(len(row.values[2]) for row in ROWS) > 1000
    assert sum(len(row.values[2]) for row in CALL_ROWS) > 200


def test_an_unhashable_field_of_a_users_level_is_named():
    @dataclasses.dataclass(frozen=True)
    class Mine(levels.Level):
        table: list

        def act(self, learner, memory, obs, ctx):
            return levels.Decision(jnp.zeros(1), memory)

    with pytest.raises(TypeError, match="table of Mine is not hashable"):
        lrl.Hierarchy([Mine([1])], car().env, car().env_params)


def test_attributes_of_a_users_level_are_checked_and_converted():
    @dataclasses.dataclass(frozen=True)
    class Mine(levels.Level):
        buffer_size: int = 0
        reward_discount: float = 1.0

        def act(self, learner, memory, obs, ctx):
            return levels.Decision(jnp.zeros(1), memory)

    assert type(Mine(np.int64(3)).buffer_size) is int
    with pytest.raises(ValueError, match="reward_discount"):
        Mine(reward_discount=2.0)
    assert Discrete(3).n == 3
