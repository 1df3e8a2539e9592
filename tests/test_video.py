"""Videos of both kinds of environments, plans drawn in mazes."""

import imageio.v3 as imageio
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnax.environments import CartPole
from scripted_gym import ScriptedGym

import lrl_jax as lrl
from lrl_jax.collectors import VideoLogger
from lrl_jax.envs.pictures import check_drawable, picture
from lrl_jax.envs.rendering import PLANNED_COLOUR
from lrl_jax.levels import ActionRepeatLevel, PlannerLevel
from lrl_jax.planners import CEM
from lrl_jax.predictors import get_default_predictor_factory


def test_gymnasium_frames_as_mp4(tmp_path):
    env = SyncVectorEnv([lambda: ScriptedGym(0, [9], render_mode="rgb_array")] * 2)
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    video = VideoLogger(tmp_path / "rollout.mp4", fps=10)
    collector.collect(n_steps=5, video_logger=video)
    assert len(video.frames) == 6 and video.frames[0].shape == (21, 31, 3)
    frames = imageio.imread(video.save(), plugin="pyav")
    assert frames.shape == (6, 20, 30, 3)  # even sides
    # The environment paints as many columns as it has taken steps, and one more.
    assert [int((frame[10, :, 0] > 128).sum()) for frame in frames] == [1, 2, 3, 4, 5, 6]
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

    # The first frame is that of before the first decision.
    assert min(planned(with_plans.frames[1:])) > 20 and max(planned(without.frames)) < 10
    assert imageio.imread(with_plans.save()).shape[0] == 4


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
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("env_id", ["Swimmer-misc", "BernoulliBandit-misc"])
def test_what_cannot_be_shown_is_refused_before_a_step(env_id, tmp_path):
    env, params = lrl.make(env_id)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params))
    before = collector.state.stream.tick
    for shown in ({"render": 0.0}, {"video_logger": VideoLogger(tmp_path / "film.gif")}):
        with pytest.raises(TypeError, match="render.*give VideoLogger a render_fn"):
            collector.collect(n_steps=1, **shown)
    assert collector.collect_step == 0 and collector.state.stream.tick == before


class Numbered(ScriptedGym):
    """Draws the number of its step."""

    def render(self):
        return np.full((16, 16, 3), self.time, np.uint8)


def numbered(n, **settings):
    fns = [lambda: Numbered(0, [3, 2], render_mode="rgb_array")] * n
    return SyncVectorEnv(fns, **settings)


@pytest.mark.parametrize("mode", [*AutoresetMode, None])
def test_every_frame_of_every_episode(mode, tmp_path):
    env = Numbered(0, [3, 2], render_mode="rgb_array") if mode is None else None
    env = numbered(2, autoreset_mode=mode) if env is None else env
    collector = lrl.Collector(lrl.RandomHierarchy(env), env)
    film = VideoLogger(tmp_path / "film.gif")
    collector.collect(n_steps=4, video_logger=film)
    collector.collect(n_steps=1, video_logger=film)  # the same film goes on
    assert [int(frame[0, 0, 0]) for frame in film.frames] == [0, 1, 2, 3, 0, 1, 2]


def test_an_end_by_the_user_is_a_last_frame(tmp_path):
    def cut(**data):
        return {"truncated": data["obs_next"][:, 2] >= 2} if "rew" in data else {}

    env = numbered(1)
    collector = lrl.Collector(lrl.RandomHierarchy(env), env, preprocess_fn=cut)
    film = VideoLogger(tmp_path / "film.gif")
    collector.collect(n_steps=3, video_logger=film)
    assert [int(frame[0, 0, 0]) for frame in film.frames] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("render", [lambda self, s: s, lambda self, s, params: s])
def test_every_frame_on_the_device(render, tmp_path, monkeypatch):
    monkeypatch.setattr(CartPole, "render", render, raising=False)
    env, params = lrl.make("CartPole-v1", max_steps_in_episode=3)
    collector = lrl.Collector(lrl.RandomHierarchy(env, env_params=params), n_env_instances=2)
    film = VideoLogger(tmp_path / "film.gif", lambda env, s: np.full((8, 8, 3), int(s.time)))
    collector.collect(n_steps=4, video_logger=film)
    collector.collect(n_steps=2, random=True, video_logger=film)
    times = [int(frame[0, 0, 0]) for frame in film.frames]
    assert times == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "env_id",
    ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1",
     "Breakout-MinAtar", "Catch-bsuite", "FourRooms-misc", "Pong-misc", "Maze2D-Empty-v0"],
)  # fmt: skip
def test_pictures_show_the_state(env_id):
    env, params = lrl.make(env_id)
    check_drawable(env)
    _, state = env.reset(jax.random.key(0), params)
    image = picture(env, state)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1
    for i in range(8):  # something moves
        action = env.action_space(params).sample(jax.random.key(i))
        _, state, *_ = env.step_env(jax.random.key(i), state, action, params)[:2]
    assert not np.array_equal(image, picture(env, state))


def test_renderers_of_all_sorts(tmp_path):
    import matplotlib.pyplot as plt

    for draw, error in (
        (lambda s: np.ones((4, 5, 3)), None),
        (lambda s, params: plt.subplots(), None),
        (lambda s: plt.subplots()[0], None),
        (lambda s: plt.subplots()[1].imshow(np.eye(2)), None),
        (lambda s: None, ValueError),
        (lambda s: "drawn", ValueError),
        (lambda s, a, b: None, TypeError),
    ):
        env = type("Own", (), {"render": staticmethod(draw), "default_params": None})()
        if error is None:
            image = picture(env, None)
            assert image.dtype == np.uint8 and image.shape[-1] == 3 and image.max() == 255
        else:
            with pytest.raises(error, match="render"):
                picture(env, None)
    assert not plt.get_fignums()


def test_a_gymnasium_environment_without_a_render_mode_is_refused_before_a_step(tmp_path):
    env = ScriptedGym(0, [5])
    env.render = lambda: None  # as Gymnasium's own without a render_mode
    collector = lrl.Collector(lrl.RandomHierarchy(env))
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        collector.collect(n_steps=1, video_logger=VideoLogger(tmp_path / "film.gif"))
    assert env.steps == 0
