"""Bad settings and calls of training are refused by name, before anything is traced or written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrl_jax as lrl
from lrl_jax.algorithms import SAC
from lrl_jax.levels import PPOLevel, RandomLevel, SACLevel
from lrl_jax.spaces import Box
from lrl_jax.training import TrainConfig, Trainer, make_train, with_settings

BAD = {
    "None": None,
    "text": "x",
    "minus one": -1,
    "zero": 0,
    "one and a half": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "2**70": 2**70,
    "True": True,
    "list": [],
    "dict": {},
    "complex": 1j,
    "object": object(),
    "bytes": b"5",
    "digits": "5",
    "array": np.array([1, 2]),
    "scalar array": jnp.float32(0.5),
}
#: What is right: an empty tuple or mapping, zero, the default, an id that only `make` can judge.
RIGHT = {
    "env": {"text", "digits"},
    "env_settings": {"dict"},
    "env_params": {"None", "dict"},
    "obs_maps": {"None"},
    "signals": {"list"},
    "frozen": {"list"},
    "sweep": {"dict"},
    "test_max_steps": {"None"},
    "chunk_rounds": {"None"},
    "checkpoint_interval": {"zero"},
    "seed": {"zero"},
    "workers": {"zero"},
    "save_best": {"True"},
    "stop_at": {"None", "minus one", "zero", "one and a half", "2**70", "scalar array"},
    "loggers": {"list"},
}
CASES = [
    (field.name, what)
    for field in dataclasses.fields(TrainConfig)
    for what in BAD
    if what not in RIGHT.get(field.name, ())
]
PENDULUM = TrainConfig((RandomLevel(),), "Pendulum-v1", total_steps=1000)


def test_there_are_many():
    assert len(CASES) > 350


@pytest.mark.parametrize("name, what", CASES)
def test_a_bad_setting_is_named(name, what):
    with pytest.raises((ValueError, TypeError), match=name):
        TrainConfig(**{"levels": (RandomLevel(),), "env": "Pendulum-v1", name: BAD[what]})


SAC_LEVEL = SACLevel(SAC(hidden=(8,)))


def changed(**changes):
    return dataclasses.replace(PENDULUM, **changes)


CALLS = {
    "there is no setting 'levels.0.nothing'": lambda: with_settings(
        PENDULUM, {"levels.0.nothing": 1}
    ),
    "levels has 1, |levels.0|there is no setting": lambda: with_settings(
        PENDULUM, {"levels.3.buffer_size": 1}
    ),
    r"levels\[0\]: a level is an instance": lambda: changed(levels=(3,)),
    r"levels\[0\]: a level is": lambda: changed(levels=(RandomLevel,)),
    "levels is empty": lambda: changed(levels=()),
    "obs_maps has 2 entries for 1 levels": lambda: changed(obs_maps=(None, None)),
    "sweep of 'seed': only settings of levels": lambda: changed(sweep={"seed": (1,)}),
    "no setting 'levels.0.nothing'": lambda: changed(sweep={"levels.0.nothing": (1,)}),
    "sweep of 'levels.0.buffer_size' must be": lambda: changed(sweep={"levels.0.buffer_size": ()}),
    "at least one number": lambda: changed(sweep={"levels.0.buffer_size": ("x",)}),
    "needs an input in": lambda: Trainer.build(
        changed(levels=(dataclasses.replace(SAC_LEVEL, level_input_space=Box(-1, 1, (2,))),))
    ),
    "frozen must be at most 0": lambda: Trainer.build(changed(frozen=(1,))),
    "unknown environment 'Pendulum-v9'": lambda: Trainer.build(changed(env="Pendulum-v9")),
    "nothing": lambda: Trainer.build(changed(env_settings={"nothing": 1})),
    "env_params has .'nothing'": lambda: Trainer.build(changed(env_params={"nothing": 1})),
    "env_settings=.* are for an environment's id": lambda: changed(
        env=lrl.make("Pendulum-v1")[0], env_settings={"g": 9.0}
    ),
    "devices": lambda: changed(devices=3),
    "workers=2 with devices=2": lambda: changed(devices=2, workers=2),
    "multiple of 3": lambda: changed(workers=3),
    "raise it to 640": lambda: changed(total_steps=600),
    "must be a typed key": lambda: make_train(PENDULUM)(jax.random.PRNGKey(0)),
    "map make_train over keys": lambda: make_train(changed(seeds=2)),
    "there is no seed 5": lambda: lrl.take_seed({"a": np.zeros(3)}, 5),
    "belongs to a level with other settings": lambda: Trainer.build(
        changed(levels=(SAC_LEVEL,)), [np.zeros(3)]
    ),
    "learners has 2 entries": lambda: Trainer.build(changed(levels=(SAC_LEVEL,)), [None, None]),
    "config is missing": lambda: lrl.train(),
    "run is missing": lambda: lrl.train(PENDULUM, resume=True),
    'settings must be "kept" or "new"': lambda: lrl.train(PENDULUM, "x", settings="old"),
    "is not a run folder": lambda: lrl.train(None, "nowhere", resume=True),
    "nowhere is not a run folder": lambda: lrl.load_run("nowhere"),
    "register takes classes": lambda: lrl.register(3),
    "SAC is taken by": lambda: lrl.register(type("SAC", (), {})),
    "buffer_size=0": lambda: Trainer.build(
        changed(levels=(dataclasses.replace(PPOLevel(), rollout_length=0),))
    ),
}
CALLS["rollout_length"] = CALLS.pop("buffer_size=0")


@pytest.mark.parametrize("says", CALLS)
def test_a_bad_call_says_what_is_wrong(says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
        CALLS[says]()
    assert not any(tmp_path.iterdir())
