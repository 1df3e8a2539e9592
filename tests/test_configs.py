"""Configs: as JSON, and changed from the command line."""

import dataclasses
import json
import math
import os
import sys

import jax.numpy as jnp
import numpy as np
import own_agent
import pytest
from tiny import tiny

import lrl_jax as lrl
from lrl_jax import cli, setting_trees
from lrl_jax.algorithms import SAC
from lrl_jax.levels import ConstantLevel, PPOLevel, RandomLevel, SACLevel
from lrl_jax.planners import ensemble_disagreement, stillness
from lrl_jax.schedules import RampSchedule
from lrl_jax.setting_trees import OfRun, with_settings
from lrl_jax.spaces import Box
from lrl_jax.training import PRESETS, TrainConfig, from_json, load_config, preset, serial, to_json

SMOKE = preset("smoke")


# -------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    resolved = config.resolved()
    assert not setting_trees.unresolved(resolved.levels)
    for each in (config, resolved):
        text = to_json(each)
        again = from_json(text)
        assert again == each and hash(again) == hash(each) and to_json(again) == text
    assert resolved.resolved() == resolved


def test_odd_values_survive_json():
    level = SACLevel(level_input_space=Box(-np.inf, jnp.array([0.5, 1.0]), (2,), jnp.bfloat16))
    config = TrainConfig(
        (ConstantLevel(np.array([0.25, -2.0])), PPOLevel(learn_until=math.inf), level),
        env_settings={"nested": {"a": (1, None)}, "b": math.nan},
        env_params={"max_steps_in_episode": np.int32(3)},
        sweep={"levels.2.learning_rate": np.array([1e-3, 1e-4])},
    )
    again = from_json(to_json(config))
    assert again.levels == config.levels and again.sweep == config.sweep
    assert again.levels[2].level_input_space.dtype == "bfloat16"
    settings = dict(again.env_settings)
    assert settings["nested"] == {"a": (1, None)} and math.isnan(settings["b"])
    assert dict(again.env_params) == {"max_steps_in_episode": 3}


def test_functions_of_the_library_survive_json():
    bonus = ((0.1, ensemble_disagreement),)
    changes = {"levels.0.aux_rewards": bonus, "levels.0.eval_aux_rewards": ((0.2, stillness),)}
    config = with_settings(SMOKE, changes)
    assert from_json(to_json(config)) == config


def test_what_the_library_itself_imports_is_no_name_of_its_own():
    """`lrl_jax.spaces` and `lrl_jax.schedules` hold helpers of other modules and of Python."""
    names = serial.known()
    assert names["stillness"] is stillness and names["Box"] is Box
    assert not {"check_float", "check_int", "field", "plain", "put_checked"} & set(names)


def changed(config, change):
    """A config whose JSON was changed by hand."""
    data = json.loads(to_json(config))
    change(data["config"])
    return from_json(json.dumps(data))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda c: c.update(flying=1), r"does not know: \['flying'\].*written by lrl_jax \d"),
        (
            lambda c: c["levels"][0]["optimizer"].update(flying=1),
            r"levels\.0\.optimizer has settings that CEM does not know: \['flying'\]",
        ),
        (
            lambda c: c["levels"][0].update({"class": "Kite"}),
            r"levels\.0 is a Kite, which is not known here.*classes=\[Kite\]",
        ),
        (lambda c: c["levels"][0]["optimizer"].update(horizon=-1), "horizon must be"),
    ],
)
def test_what_is_not_known_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        changed(SMOKE, change)


def test_missing_fields_take_their_defaults():
    def cut(config):
        del config["seeds"], config["nan"], config["levels"][0]["hold"]
        del config["levels"][0]["predictor_factory"]["partial_model"]["n_models"]

    # The preset has the default there, too.
    assert changed(SMOKE, cut) == SMOKE


@pytest.mark.parametrize("text", ['{"format": 3, "version": "9.9", "config": {}}', "{}"])
def test_other_formats_are_refused(text):
    with pytest.raises(ValueError, match=r"format .*, this version reads 2"):
        from_json(text)


def test_no_file_imports_or_calls_anything(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise AssertionError('imported')\n\nclass Level: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("called"))
    for name in ("os.system", "system", "trap.Level", "__import__", "builtins.eval", "print"):
        for value in ({"class": name}, {"function": name}, {"class": name, "command": "true"}):
            with pytest.raises(ValueError, match="not known here and is not looked for"):
                changed(SMOKE, lambda c, value=value: c["levels"].__setitem__(0, value))
        for env in ({"object": name, "plain": True}, {"class": name}):
            with pytest.raises(ValueError, match=r"pass it"):
                changed(SMOKE, lambda c, env=env: c.update(env=env))
    assert "trap" not in sys.modules


def test_a_function_that_is_known_is_never_called():
    def forbidden():
        pytest.fail("called")

    data = json.loads(to_json(SMOKE))
    data["config"]["levels"][0] = {"class": forbidden.__qualname__}
    with pytest.raises(ValueError, match=r"levels\.0 is a .*forbidden, which is not a dataclass"):
        from_json(json.dumps(data), classes=[forbidden])


# ------------------------------------------------------------------- own classes


def test_own_classes_have_to_be_given(monkeypatch):
    config = own_agent.config()
    text = to_json(config)
    with pytest.raises(ValueError, match="is a Bandit, which is not known here"):
        from_json(text)
    own = [own_agent.Bandit, own_agent.Push]
    with pytest.raises(ValueError, match="env was a Point object"):
        from_json(text, classes=own)
    given = from_json(text, classes=[*own, own_agent.Point])
    monkeypatch.setattr(serial, "_registered", {})
    lrl.register(*own)
    assert lrl.register(own_agent.Point) is own_agent.Point
    registered = from_json(text)
    for again in (given, registered, from_json(text, classes=own, env=config.env)):
        assert again.levels == config.levels and type(again.env) is own_agent.Point
        assert again.env_params == config.env_params


def test_names_that_are_taken_are_refused(monkeypatch):
    monkeypatch.setattr(serial, "_registered", {})

    def made(name, module):
        return type(name, (RandomLevel,), {"__module__": module, "__qualname__": name})

    with pytest.raises(ValueError, match="RandomLevel is taken by"):
        lrl.register(made("RandomLevel", "mine"))
    lrl.register(made("Kite", "mine"))
    again = lrl.register(made("Kite", "mine"))  # as a notebook's cell that is run again does
    assert serial.known()["Kite"] is again
    with pytest.raises(ValueError, match="Kite is taken by"):
        lrl.register(made("Kite", "yours"))
    with pytest.raises(TypeError, match="classes and functions"):
        lrl.register("Kite")


def first_half(obs):
    return obs[: obs.shape[0] // 2]


def test_functions_in_settings():
    config = dataclasses.replace(SMOKE, obs_maps=(first_half, None))
    with pytest.raises(ValueError, match=r"obs_maps\.0 is a first_half, which is not known"):
        from_json(to_json(config))
    assert from_json(to_json(config), classes=[first_half]) == config


def test_environments_that_need_arguments_have_to_be_given_again():
    maze = lrl.envs.Maze2D(["####", "#..#", "####"])
    config = dataclasses.replace(SMOKE, env=maze)
    with pytest.raises(ValueError, match=r"env was a Maze2D object.*env=\.\.\."):
        from_json(to_json(config), classes=[lrl.envs.Maze2D])
    assert from_json(to_json(config), env=maze) == config


def test_agents_of_before_are_named_with_what_replaces_them():
    for name in ("PlannerAgent", "SkillAgent", "SACAgent", "DQNAgent", "TDMPC2Agent"):
        with pytest.raises(ImportError, match=f"{name} .* gone: .*TrainConfig\\(levels="):
            exec(f"from lrl_jax.training import {name}")
    assert not hasattr(lrl.training, "flying")


# -------------------------------------------------------------- fractions of a run


def test_fractions_are_put_in_when_a_run_begins_and_kept(tmp_path):
    rate = RampSchedule(1e-3, 0.0, end=OfRun(1.0))
    settings = {"levels.0.warm_up_steps": OfRun(0.25), "levels.0.algorithm.learning_rate": rate}
    config = with_settings(tiny("pendulum-sac"), settings)
    lrl.train(config, tmp_path / "run", progress=False)
    numbers = load_config(tmp_path / "run")
    assert numbers == config.resolved() and config.levels[0].warm_up_steps == OfRun(0.25)
    assert numbers.levels[0].warm_up_steps == 8.0
    assert numbers.levels[0].algorithm.learning_rate == RampSchedule(1e-3, 0.0, end=32.0)
    assert numbers.chunk_rounds == 1
    # Those of the first start stay, for the config that the run began with is still the same.
    longer = dataclasses.replace(config, total_steps=64)
    summary = lrl.train(longer, tmp_path / "run", progress=False, resume=True)
    assert summary.env_steps == 64
    assert load_config(tmp_path / "run") == dataclasses.replace(numbers, total_steps=64)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def asked(monkeypatch):
    """What `lrl-jax train` would train."""
    seen = []
    monkeypatch.setattr(cli, "train", lambda config, *_: seen.append(config))

    def ask(*args):
        cli.main(["train", *args])
        return seen.pop()

    return ask


SPLATES = "maze2d-medium-splates"
MODEL = "levels.0.predictor_factory.partial_model"
RATE = "levels.0.algorithm.learning_rate"


@pytest.mark.parametrize(
    "name, options, changes",
    [
        (SPLATES, "--levels.0.optimizer.horizon 20", {"levels.0.optimizer.horizon": 20}),
        (SPLATES, "--levels.0.n_updates=3", {"levels.0.n_updates": 3}),
        (SPLATES, "--levels.0.n-updates 3 --seed 4", {"levels.0.n_updates": 3, "seed": 4}),
        (
            SPLATES,
            "--levels.0.predictor-factory.partial-model.hidden 8 9",
            {f"{MODEL}.hidden": (8, 9)},
        ),
        (SPLATES, "--levels.0.no-alternate-with-noise", {"levels.0.alternate_with_noise": False}),
        (SPLATES, "--levels.1.act-by policy", {"levels.1.act_by": "policy"}),
        (SPLATES, "--test-max-steps 100", {"test_max_steps": 100}),
        (SPLATES, "--frozen 0 1", {"frozen": (0, 1)}),
        # Whole numbers may be written like others.
        (
            SPLATES,
            "--total-steps 1.2e6 --levels.0.buffer-size 1e5",
            {"total_steps": 1_200_000, "levels.0.buffer_size": 100_000},
        ),
        # Either alone would leave one elite.
        (
            "smoke",
            "--levels.0.optimizer.num-samples 4 --levels.0.optimizer.elite-ratio 0.5",
            {"levels.0.optimizer.num_samples": 4, "levels.0.optimizer.elite_ratio": 0.5},
        ),
        # Schedules, and fractions of the run.
        ("cartpole-dqn", "--levels.0.algorithm.learning-rate 1e-3", {RATE: 1e-3}),
        (
            SPLATES,
            "--levels.1.algorithm.compute-dtype bfloat16",
            {"levels.1.algorithm.compute_dtype": "bfloat16"},
        ),
        ("cartpole-dqn", "--levels.0.algorithm.learning-rate=2e-3", {RATE: 2e-3}),
        (
            "cartpole-dqn",
            "--levels.0.algorithm.learning-rate.steps 0 100 200",
            {f"{RATE}.steps": (0.0, 100.0, 200.0)},
        ),
        ("cartpole-ppo", "--levels.0.algorithm.learning-rate.end 1e4", {f"{RATE}.end": 1e4}),
        (SPLATES, "--levels.1.freeze-after-steps 1e5", {"levels.1.freeze_after_steps": 1e5}),
        (SPLATES, "--levels.1.freeze-after-steps None", {"levels.1.freeze_after_steps": None}),
        # By name alone.
        ("cartpole-dqn", "--levels.0.learning-rate 1e-3", {RATE: 1e-3}),
        (SPLATES, "--levels.0.sb-start-duration=0", {f"{MODEL}.sb_start_duration": 0.0}),
        # Mappings.
        (
            SPLATES,
            "--env-params.max-steps-in-episode 50",
            {"env_params": (("max_steps_in_episode", 50),)},
        ),
        (
            "pendulum-sac",
            "--env brax/ant --env-settings.backend spring --env-settings.n-frames=5",
            {"env": "brax/ant", "env_settings": (("backend", "spring"), ("n_frames", 5))},
        ),
        (
            "pendulum-sac",
            "--sweep.levels.0.learning-rate 1e-4 1e-3 --sweep.levels.0.algorithm.gamma=0.9",
            {"sweep": {RATE: (1e-4, 1e-3), "levels.0.algorithm.gamma": (0.9,)}},
        ),
    ],
)
def test_options_change_settings_by_path(asked, name, options, changes):
    config = asked(name, *options.split())
    assert config == with_settings(preset(name), changes) != preset(name)
    assert all(type(x) is int for x in (config.total_steps, config.levels[0].buffer_size))
    assert from_json(to_json(config)) == config


def test_a_config_of_ones_own(asked, monkeypatch):
    monkeypatch.setattr(sys, "path", [os.path.dirname(__file__), *sys.path])
    config = asked("own_agent:config", "--levels.0.epsilon", "0.1", "--env-params.drag", "0.2")
    assert config.levels == (own_agent.Bandit(0.1), own_agent.Push())
    assert config.env_params == (("drag", 0.2),) and type(config.env) is own_agent.Point


@pytest.mark.parametrize(
    "args, says",
    [
        (["pendulum-sca"], "did you mean pendulum-sac "),
        (["smoke", "--levels.0.optimizer.horizont", "3"], "--levels.0.optimizer.horizon INT"),
        (["smoke", "--levels.2.n-updates", "3"], "Unrecognized options: --levels.2.n-updates"),
        (["smoke", "--agent.horizon", "3"], "of their levels: --levels.0.optimizer.horizon."),
        (["smoke", "--agent.planner-updates=3"], "--agent.planner-updates: agents are gone"),
        (["smoke", "--levels.0.optimizer.horizon", "2.5"], "2.5 is not a whole number"),
        (["smoke", "--levels.0.optimizer.horizon", "0"], "horizon must be"),
        (["smoke", "--levels.0.mode", "median"], "mode must be one of"),
        (["smoke", "--env-params.max-steps-in-episode"], "needs a value"),
        (["smoke", "--sweep.levels.0.flying", "1"], "there is no setting 'levels.0.flying'"),
        (["smoke", "--sweep.total-steps", "1e3"], "only settings of levels can be swept"),
        (["no_such_module:config"], "there is no module 'no_such_module'"),
        (["own_agent:nothing"], "no TrainConfig 'nothing'"),
    ],
)
def test_mistakes_are_refused(asked, capsys, monkeypatch, args, says):
    monkeypatch.setattr(sys, "path", [os.path.dirname(__file__), *sys.path])
    with pytest.raises(SystemExit) as caught:
        asked(*args)
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says in said


def test_the_help_has_the_settings_of_all_levels_with_what_they_are(asked, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        asked("smoke", "--help")
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "--levels.0.optimizer.horizon INT steps H of a plan. (default: 3)",
        "--levels.1.control-interval INT",
        "--total-steps INT environment steps of an agent",
        "A run of seconds that passes through everything",
        "--sweep.PATH VALUE [VALUE ...]",
    ):
        assert part in said


def test_a_swept_run_has_an_agent_for_each_combination_and_seed():
    sweep = {"levels.0.learning_rate": (1e-4, 1e-3), "levels.0.gamma": (0.9, 0.95, 0.99)}
    config = TrainConfig((SACLevel(SAC()),), "Pendulum-v1", sweep=sweep, seed=5, seeds=2)
    assert config.n_agents == 12 and config.agent_seeds == (5, 6) * 6
    settings = config.agent_settings
    assert settings[0] == settings[1] == {RATE: 1e-4, "levels.0.algorithm.gamma": 0.9}
    assert len({tuple(x.items()) for x in settings}) == 6
    one = config.of_combination(settings[-1])
    assert one.levels[0].algorithm == SAC(learning_rate=1e-3, gamma=0.99) and one.n_agents == 2
