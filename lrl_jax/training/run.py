"""A training run with its folder: the host loop around jitted chunks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from lrl_jax import checkpoints, devices
from lrl_jax.collectors import check_finite
from lrl_jax.env_spec import is_gymnasium
from lrl_jax.envs import GYMNASIUM
from lrl_jax.loggers import Logger
from lrl_jax.loggers import make as make_loggers
from lrl_jax.training import folder, loading, sessions
from lrl_jax.training.config import CONFIG, TrainConfig, own_classes, to_json
from lrl_jax.training.drawing import draw_run
from lrl_jax.training.logging import RunLog
from lrl_jax.training.sessions import Session
from lrl_jax.training.statistics import over_seeds
from lrl_jax.training.stopping import Interrupted, stop_signals
from lrl_jax.training.summary import Summary, final_test
from lrl_jax.training.train import Trainer

#: Called between chunks with (environment steps, state, row of the log). Returns None, True to stop
#: early, or a mapping of scalars that are logged too.
Callback = Callable[[int, Any, dict[str, float]], Any]


def train(
    config: TrainConfig | None = None,
    run: str | Path | None = None,
    progress: bool = True,
    *,
    resume: bool = False,
    settings: Literal["kept", "new"] = "kept",
    total_steps: int | None = None,
    learners: Sequence[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] | None = None,
    checkpoint: Literal["best"] | None = None,
    classes: Sequence[Any] = (),
    env: Any = None,
) -> Summary:
    """Train, test, save and draw into a run folder.

    Ctrl-C and SIGTERM end the run with a checkpoint after the current chunk, and raise
    `Interrupted`; a second one ends it at once. Processes that share devices (`jax.distributed`)
    all call this with the same arguments: the first writes the folder, all of them the
    checkpoints in it.

    Args:
        config: what to train; None to continue a run unchanged.
        run: its folder, `runs/<environment>-<time>` if None.
        progress: whether a bar is shown.
        resume: continue the run in the folder, bit for bit on the same device, or begin it if
            there is none. A finished run is returned unchanged, unless it should take more steps.
        settings: "new" continues with the settings of `config`, "kept" refuses a config whose
            settings differ from those the run began with.
        total_steps: replaces the config's.
        learners: of other runs, one for each level, to begin with: a learner, the folder of a run
            whose level at the same place it is, or None for a fresh one.
        callbacks: called on the host after each interim test, see `Callback`.
        loggers: where scalars and pictures go, instead of the config's: names, or objects, see
            `lrl_jax.loggers`.
        checkpoint: with `resume`, "best" goes back to the checkpoint of `save_best`: later ones
            are removed, and what was logged after it is dropped.
        classes: your own classes that the config in the folder names.
        env: the environment of a run that was given an object, if `config` is None.

    Raises:
        FileExistsError: if the folder holds a run and `resume` is False, or another process trains
            in it.
        FloatingPointError: if rewards, observations or losses stop being finite.
        ImportError: if a logger's package is not installed.
        Interrupted: see above.
        ValueError, TypeError: for arguments that do not fit, before training.
    """
    if settings not in ("kept", "new"):
        raise ValueError(f'settings must be "kept" or "new", got {settings!r}.')
    if config is None and not resume:
        raise ValueError("config is missing: give one, or resume=True to continue a run.")
    if checkpoint is not None and not resume:
        raise ValueError(f"checkpoint={checkpoint!r} goes with resume=True.")
    if config is not None and total_steps is not None:
        config = dataclasses.replace(config, total_steps=total_steps)
    if run is None:
        if resume:
            raise ValueError("run is missing: give the folder of the run to continue.")
        assert config is not None
        run = folder.new_folder(config.name)
    run = Path(run)
    if resume and (run / CONFIG).exists():
        known = loading.config_of(run, config, classes, env)
        first_total = folder.first_total_steps(run)
        config = loading.merged(known, config, first_total, settings, total_steps)
        if checkpoint is not None:
            folder.checkpoint_of(run, checkpoint)  # there must be one
        done = Summary.load(run)
        if done is not None and checkpoint is None and _is_done(done, run, config):
            return done
        if learners is not None:
            raise ValueError(f"learners are for the start of a run, which {run} has had.")
        log_to = make_loggers(config.loggers if loggers is None else loggers)
        _check_processes(config)
        trainer = Trainer.build(config)
        with _exclusive(run):
            if checkpoint is not None:
                if jax.process_index() == 0:
                    folder.go_back(run, checkpoint)
                devices.wait_for_processes(f"run {run} to go back")
            return _run(trainer, run, progress, callbacks, log_to, first_total, settings)
    if config is None:
        raise FileNotFoundError(f"{run} is not a run folder: it has no {CONFIG}.")
    _check_processes(config)
    if (run / CONFIG).exists():
        raise FileExistsError(
            f"{run} already holds a run: choose another folder, or continue it with "
            f"`lrl-jax resume {run}` or resume=True."
        )
    log_to = make_loggers(config.loggers if loggers is None else loggers)
    known = [*classes, *own_classes(config)]
    trainer = Trainer.build(config, loading.learners_of(learners, known))
    devices.wait_for_processes(f"run {run}")  # before the first of them writes there
    if jax.process_index() == 0:
        folder.claim(run, trainer.config)
    with _exclusive(run):
        return _run(trainer, run, progress, callbacks, log_to)


def _is_done(summary: Summary, run: Path, config: TrainConfig) -> bool:
    """Whether a run that has ended would take no further step."""
    if summary.stopped_at is not None and config.stop_at is not None:
        return summary.stopped_at >= config.stop_at
    return loading.steps_reached(run) >= _steps(config)


def _exclusive(run: Path) -> contextlib.AbstractContextManager:
    return folder.locked(run) if jax.process_index() == 0 else contextlib.nullcontext()


def _steps(config: TrainConfig) -> int:
    """Environment steps of a whole run."""
    return sum(config.chunks) * config.round_steps


def _check_processes(config: TrainConfig) -> None:
    """Refuse what several processes cannot share."""
    if jax.process_count() == 1:
        return
    n = jax.process_count()
    if config.workers:
        raise ValueError(
            f"workers={config.workers} with {n} processes: workers on other machines join "
            f"through Ray: start one process."
        )
    if is_gymnasium(config.env) or str(config.env).startswith(GYMNASIUM):
        raise ValueError(
            f"{config.name} runs on the host, which {n} processes cannot share: collect with a "
            f"CWorkerSet, or use one process."
        )
    if config.n_agents > 1:
        raise ValueError(
            f"{config.n_agents} agents (seeds={config.seeds}) with {n} processes: train several "
            f"agents in one process, or one in several."
        )


def _run(
    trainer: Trainer,
    run: Path,
    progress: bool,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    first_total: int | None = None,
    settings: str = "kept",
) -> Summary:
    """The run in its folder, from its last checkpoint if `first_total` is given."""
    checkpoint, meta = None, {"env_steps": 0, "seconds": 0.0}
    if first_total is not None:
        with contextlib.suppress(FileNotFoundError):  # killed before the first one
            checkpoint = folder.last_checkpoint(run)
            meta = folder.meta_of(checkpoint)
    with _place(run) as place:
        if jax.process_index() == 0 and first_total is not None:
            folder.rewrite(run, trainer.config, first_total)
        resume_at = None if first_total is None else meta["env_steps"]
        started = sessions.begin(trainer, checkpoint, new_settings=settings == "new")
        with contextlib.ExitStack() as until_drawn:
            with contextlib.closing(started) as session:
                of_first = loggers if jax.process_index() == 0 else ()
                plain = json.loads(to_json(trainer.config))["config"]
                log = until_drawn.enter_context(RunLog(place, resume_at, of_first, plain))
                loop = _Loop(trainer, session, log, run, callbacks, meta, time.monotonic())
                speed = loop.go(progress and jax.process_index() == 0)
                state = session.result()
            summary = final_test(trainer, state, run, loop.seconds, speed, loop.stopped_at)
            drawn = draw_run(trainer, state, place, log, summary)
            log.pictures(summary.env_steps, drawn)
    if jax.process_index() == 0:
        summary.save()
    return summary


@contextlib.contextmanager
def _place(run: Path) -> Iterator[Path]:
    """Where a process logs and draws: in the run's folder, if it is the first one."""
    if jax.process_index() == 0:
        yield run
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@dataclasses.dataclass
class _Loop:
    """The chunks of a run."""

    trainer: Trainer
    session: Session
    log: RunLog
    run: Path
    callbacks: Sequence[Callback]
    meta: dict[str, Any]  # of the checkpoint that it began from
    began: float
    stopped_at: float | None = None  # what reached the config's stop_at

    @property
    def seconds(self) -> float:
        """Seconds of training, those before the checkpoint too."""
        return self.meta["seconds"] + time.monotonic() - self.began

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.run / folder.CHECKPOINTS

    def go(self, progress: bool) -> float:
        """Train to the end; returns the steps per second without compiling."""
        config = self.trainer.config
        speeds: list[float] = []
        done = self.meta["env_steps"]
        saved = done
        best = _score_of_best(self.checkpoints)
        chunks = list(_remaining(config, done))
        total = chunks[-1][2] if chunks else done
        with stop_signals(self.run) as stop, self._bar(progress, done, total) as bar:
            for i, n_rounds, env_steps in chunks:
                row = self._chunk(i, n_rounds, env_steps, speeds)
                stopped_early = self._call_back(env_steps, row)
                self.log.write(row)
                score = score_of(row)
                if config.stop_at is not None and score[0] >= config.stop_at:
                    stopped_early, self.stopped_at = True, score[0]
                bar.update(env_steps - done)
                bar.set_postfix_str(_postfix(row))
                done = env_steps
                if config.save_best and score > best:
                    best = score
                    self._save(self.checkpoints / folder.BEST, done, score=best)
                if stopped_early or env_steps == total:
                    break
                every = config.checkpoint_interval
                if stop or (every and (i + 1) % every == 0):
                    self._save(folder.checkpoint_path(self.checkpoints, done), done)
                    folder.prune(self.checkpoints, config.max_to_keep)
                    saved = done
                if stop:
                    raise Interrupted(self.run, saved, stop[0])
            self._save(self.checkpoints / folder.FINAL, done)
        # The first chunk includes compilation where that cannot be timed separately.
        measured = speeds[1:] if len(speeds) > 1 and not self.session.compiles_apart else speeds
        return float(np.mean(measured)) if measured else math.nan

    def _bar(self, progress: bool, done: int, total: int) -> tqdm:
        return tqdm(total=total, initial=done, unit="step", disable=not progress)

    def _chunk(self, i: int, n_rounds: int, env_steps: int, speeds: list[float]) -> dict[str, Any]:
        """Train and test; returns the row of the log."""
        config = self.trainer.config
        compile_seconds = self.session.compile(n_rounds)
        start = time.monotonic()
        metrics = self.session.advance(n_rounds)
        steps = config.n_agents * n_rounds * config.round_steps
        speeds.append(steps / (time.monotonic() - start))
        metrics, tested = jax.device_get((metrics, self.session.test(i)))
        if config.nan == "raise":
            metrics = _finite(metrics, env_steps, self.run)
        row = {
            "env_steps": env_steps,
            "seconds": self.seconds,
            "env_steps_per_second": speeds[-1],
        }
        if config.n_agents == 1:
            row |= _agent_row(metrics, tested)
        else:
            agents = [
                _agent_row(*jax.tree.map(lambda x, j=j: x[j], (metrics, tested)))
                for j in range(config.n_agents)
            ]
            row |= over_seeds(agents)
            self.log.write_seeds(
                [
                    {"env_steps": env_steps, "agent": j, "seed": seed, **swept, **agent}
                    for j, (seed, swept, agent) in enumerate(
                        zip(config.agent_seeds, config.agent_settings, agents, strict=True)
                    )
                ]
            )
        if compile_seconds:
            row["compile_seconds"] = compile_seconds
        return row

    def _call_back(self, env_steps: int, row: dict[str, Any]) -> bool:
        """Call the callbacks; whether one of them wants the run to stop."""
        stop = False
        for callback in self.callbacks:
            answer = callback(env_steps, self.session.state, row)
            if answer is None or isinstance(answer, bool | np.bool_):
                stop |= bool(answer)
            elif isinstance(answer, dict):
                row |= {name: float(value) for name, value in answer.items()}
            else:
                raise TypeError(
                    f"{callback} returned {answer!r}: return None, True to stop, or a dict of "
                    f"scalars to log."
                )
        return stop

    def _save(self, path: Path, env_steps: int, **meta: Any) -> None:
        self.session.save(path, {"env_steps": env_steps, "seconds": self.seconds, **meta})


def score_of(row: dict[str, Any]) -> tuple[float, ...]:
    """What interim tests are compared by: success, where there is, then return."""
    score = [float(row[name]) for name in ("test_success", "test_return") if name in row]
    return tuple(-math.inf if math.isnan(x) else x for x in score)


def _score_of_best(folder_: Path) -> tuple[float, ...]:
    """The score of the best checkpoint there is; less than any without one."""
    path = folder_ / folder.BEST
    return tuple(folder.meta_of(path)["score"]) if checkpoints.exists(path) else ()


def _remaining(config: TrainConfig, done: int) -> Iterator[tuple[int, int, int]]:
    """Index, rounds, and environment steps after it, of each chunk that is not done."""
    env_steps = 0
    for i, n_rounds in enumerate(config.chunks):
        before, env_steps = env_steps, env_steps + n_rounds * config.round_steps
        if env_steps > done:  # a run that was to be shorter may have ended within this chunk
            yield i, (env_steps - max(before, done)) // config.round_steps, env_steps


def _finite(metrics: dict[str, Any], env_steps: int, run: Path) -> dict[str, Any]:
    """The metrics of a chunk, refused where a step or a loss is not finite; see `check_finite`."""
    try:
        return check_finite(metrics)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} The run {run} ends within the {env_steps} environment steps up to its next "
            f"test; its last checkpoint is from before. nan='allow' lets it pass."
        ) from None


def _agent_row(metrics: dict[str, Any], tested: dict[str, Any]) -> dict[str, float]:
    """An agent's metrics of a chunk and its test; means over episodes only where one ended."""
    row = {name: float(value) for name, value in metrics.items() if "/" in name}
    row["train_reward"] = float(metrics["reward_mean"])
    episodes = int(metrics["n_episodes"])
    row["train_episodes"] = episodes
    if episodes:
        row["train_return"] = float(metrics["return_sum"]) / episodes
        if "test_success" in tested:
            row["train_success"] = float(metrics["success_sum"]) / episodes
    return row | {name: float(value) for name, value in tested.items()}


def _postfix(row: dict[str, float]) -> str:
    success = ""
    if "test_success" in row:
        success = f"success={row['test_success']:.2f} (at end {row['test_success_at_end']:.2f}), "
    return f"{success}return={row['test_return']:.1f}"
