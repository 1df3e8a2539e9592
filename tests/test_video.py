"""Videos of both kinds of environments, plans drawn in mazes."""

import imageio.v3 as imageio
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors import VideoLogger
from lrl_jax.envs.rendering import PLANNED_COLOUR
from lrl_jax.levels import ActionRepeatLevel, PlannerLevel
from lrl_jax.planners import CEM
from lrl_jax.predictors import get_default_predictor_factory


def test_gymnasium_frames_as_mp4(tmp_path):
    env = SyncVectorEnv([lambda: ScriptedGym(0, [9], render_mode="rgb_array")] * 2)
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    video = VideoLogger(tmp_path / "rollout.mp4", fps=10)
    collector.collect(n_steps=5, video_logger=video)
    assert len(video.frames) == 5 and video.frames[0].shape == (21, 31, 3)
    frames = imageio.imread(video.save(), plugin="pyav")
    assert frames.shape == (5, 20, 30, 3)  # even sides
    # The environment paints as many columns as it has taken steps, and one more.
    assert [int((frame[10, :, 0] > 128).sum()) for frame in frames] == [2, 3, 4, 5, 6]
    assert not video.frames


def test_plans_are_drawn_in_mazes(tmp_path):
    env, params = lrl.make("Maze2D-Simple-v0")
    planner = PlannerLevel(
        get_default_predictor_factory(env, 0), optimizer=CEM(3, 8, 0.5, n_iterations=1),
        buffer_size=64, warm_up_steps=0,
    )  # fmt: skip
    hierarchy = lrl.Hierarchy([planner, ActionRepeatLevel(2)], env, params)
    collector = lrl.Collector(hierarchy, env, env_params=params)
    with_plans = VideoLogger(tmp_path / "plans.gif")
    collector.collect(n_steps=3, video_logger=with_plans)
    without = VideoLogger(tmp_path / "bare.gif", draw_plans=False)
    collector.collect(n_steps=3, video_logger=without)

    def planned(frames):
        near = [np.abs(f.astype(int) - PLANNED_COLOUR).max(-1) < 60 for f in frames]
        return [int(pixels.sum()) for pixels in near]

    assert min(planned(with_plans.frames)) > 20 and max(planned(without.frames)) < 10
    assert imageio.imread(with_plans.save()).shape[0] == 3


def test_wrong_uses(tmp_path):
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        VideoLogger(tmp_path / "film.avi")
    with pytest.raises(ValueError, match="fps"):
        VideoLogger(tmp_path / "film.gif", fps=0)
    env = ScriptedGym(0, [5])
    env.render = lambda: None
    with pytest.raises(ValueError, match="rgb_array"):
        VideoLogger(tmp_path / "film.gif").record(env)
    car, params = lrl.make("MountainCarContinuous-v0")
    bare = type("Bare", (), {})()
    with pytest.raises(TypeError, match="render_fn"):
        VideoLogger(tmp_path / "film.gif").record(bare, None)
    del car, params


def test_rendering_waits_and_calls_the_environment():
    env = ScriptedGym(0, [9], render_mode="rgb_array")
    seen = []
    env.render = lambda: seen.append(env.time)
    vector = SyncVectorEnv([lambda: env])
    lrl.Collector(lrl.RandomHierarchy(vector), vector).collect(n_steps=3, render=0.0)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Catch-bsuite", "Pong-misc", "Pendulum-v1"])
def test_what_cannot_be_shown_is_refused_before_a_step(env_id, tmp_path):
    env, params = lrl.make(env_id)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params))
    before = collector.state.stream.tick
    for shown in ({"render": 0.0}, {"video_logger": VideoLogger(tmp_path / "film.gif")}):
        with pytest.raises(TypeError, match="render.*give VideoLogger a render_fn"):
            collector.collect(n_steps=1, **shown)
    assert collector.collect_step == 0 and collector.state.stream.tick == before
