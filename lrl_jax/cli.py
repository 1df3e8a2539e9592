"""Command line: `lrl-jax train [preset]`, and `resume`, `test`, `show` and `compare` of runs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import jax
import numpy as np
import tyro

from lrl_jax.cli_settings import parse
from lrl_jax.training import (
    DEFAULT_PRESET,
    PRESETS,
    Interrupted,
    Summary,
    TrainConfig,
    compare,
    load_trainer,
    preset,
    report,
    run_training,
)
from lrl_jax.training.config import load_config, own_classes
from lrl_jax.training.folder import new_folder
from lrl_jax.training.presets import about
from lrl_jax.training.sessions import test_episodes
from lrl_jax.training.summary import over_agents

_RESTARTED = "LRL_JAX_RESTARTED"  # in the environment of a command that has begun again
_FILES = (
    "learning_curve.png",
    "paths.png",
    "rollout.gif",
    "metrics.csv",
    "seeds.csv",
    "tensorboard",
    "checkpoints/final",
)


@dataclasses.dataclass(frozen=True)
class Test:
    """Evaluate the checkpoint of a run.

    Attributes:
        run: the run folder.
        episodes: whole episodes of each agent, one in each of as many instances.
        seed: of the test.
        pick: index, from 0, of the only agent to test in a run of several.
        checkpoint: "best" for that of --save-best; the last one without.
        config: where your own classes are that the run was made of, "package.module:config".
    """

    run: Annotated[Path, tyro.conf.Positional]
    episodes: int = 256
    seed: int = 0
    pick: int | None = None
    checkpoint: Literal["best"] | None = None
    config: str | None = None

    def __post_init__(self):
        if self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}.")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}.")


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, or for more steps.

    Attributes:
        run: the run folder.
        total_steps: environment steps of an agent, those before included; as before if None.
        checkpoint: "best" goes back to that of --save-best, and removes later ones.
        config: where your own classes are that the run was made of, "package.module:config".
        quiet: shows no progress.
    """

    run: Annotated[Path, tyro.conf.Positional]
    total_steps: float | None = None
    checkpoint: Literal["best"] | None = None
    config: str | None = None
    quiet: bool = False

    def __post_init__(self):
        if self.total_steps is not None and self.total_steps != int(self.total_steps):
            raise ValueError(f"--total-steps must be a whole number, got {self.total_steps}.")


@dataclasses.dataclass(frozen=True)
class Show:
    """Show what a run is and how it went.

    Attributes:
        run: the run folder.
        config: where your own classes are that the run was made of, "package.module:config".
    """

    run: Annotated[Path, tyro.conf.Positional]
    config: str | None = None


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draw runs in one figure and print them as a table.

    Attributes:
        runs: the run folders.
        out: file of the figure.
        measure: column of metrics.csv to compare; if None test_success if all runs have it, else
            test_return.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path = Path("comparison.png")
    measure: str | None = None


def train(
    config: TrainConfig, name: str, out: Path | None, quiet: bool, go_on: bool = False
) -> None:
    """Run a config and print what was reached and where things are."""
    run = out or new_folder(name)
    agents = f"{config.n_agents} agents" if config.n_agents > 1 else ""
    print(
        f"training {agents and agents + ' of '}{name} on {config.name}: {config.total_steps} "
        f"environment steps{' each' if agents else ''} -> {run}",
        flush=True,
    )
    _report(run_training(config, run, progress=not quiet, resume=go_on))


def resume(args: Resume) -> None:
    """Go on with a run and print what was reached."""
    config = None if args.config is None else user_config(args.config)
    total = None if args.total_steps is None else int(args.total_steps)
    classes = [] if config is None else own_classes(config)
    env = None if config is None or isinstance(config.env, str) else config.env
    print(f"resuming {args.run}", flush=True)
    summary = run_training(
        None,
        args.run,
        progress=not args.quiet,
        resume=True,
        total_steps=total,
        checkpoint=args.checkpoint,
        classes=classes,
        env=env,
    )
    _report(summary)


def _report(summary: Summary) -> None:
    """Print what a run reached and where things are."""
    run = Path(summary.run)
    files = ", ".join(file for file in _FILES if (run / file).exists())
    print(f"\n{summary}\nin {run}: {files}\nlook again with: lrl-jax test {run}")


def user_config(place: str) -> TrainConfig:
    """The config at "package.module:name", or what a function there returns.

    Raises:
        ValueError: if there is none.
    """
    module_name, _, name = place.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(f"there is no module {module_name!r} here: {error}.") from None
    finally:
        sys.path.remove(os.getcwd())
    config = getattr(module, name or "config", None)
    config = config() if callable(config) else config
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"{module_name} has no TrainConfig {name or 'config'!r}, nor a function that returns "
            f"one: it is {config!r}."
        )
    return config


def test(args: Test) -> None:
    """Evaluate a run's checkpoint and print the result."""
    config = None if args.config is None else user_config(args.config)
    classes = [] if config is None else own_classes(config)
    env = None if config is None or isinstance(config.env, str) else config.env
    which = {"checkpoint": args.checkpoint, "classes": classes, "env": env}
    trainer, state = load_trainer(args.run, args.pick, **which)
    n_agents = trainer.config.n_agents
    if args.pick is None and n_agents > 1:
        episodes = test_episodes(trainer, state, args.episodes, [args.seed] * n_agents)
        success = np.mean(episodes.success, axis=1) if trainer.has_success else None
        results = over_agents(success, np.mean(episodes.episode_return, axis=1))
        print(f"{args.run}: {results} over {args.episodes} episodes of each agent")
        return
    episodes = test_episodes(trainer, state, args.episodes, args.seed)
    agent = f", agent {args.pick}" if n_agents > 1 else ""
    success = ""
    if trainer.has_success:
        success = (
            f"success {np.mean(episodes.success):.3f} "
            f"(at the last step {np.mean(episodes.success_at_end):.3f}), "
        )
    print(
        f"{args.run}{agent}: {success}return "
        f"{np.mean(episodes.episode_return):.1f} +- {np.std(episodes.episode_return):.1f} over "
        f"{args.episodes} episodes"
    )


def show(args: Show) -> None:
    """Print what a run is and how it went."""
    config = None if args.config is None else user_config(args.config)
    classes = [] if config is None else own_classes(config)
    env = None if config is None or isinstance(config.env, str) else config.env
    print(report(args.run, classes=classes, env=env))


def _compare(args: Compare) -> None:
    """Draw runs in one figure and print a table."""
    comparison = compare(*args.runs, measure=args.measure)
    print(f"{comparison}\n\nfigure: {comparison.draw(args.out)}")


def _usage() -> str:
    lines = [
        "usage: lrl-jax train [PRESET | MODULE:CONFIG] [--out FOLDER] [--resume] [--quiet]",
        "                     [--seeds N] [--devices N]",
        "                     [--coordinator HOST:PORT --processes N --process-id I]",
        "                     [settings; lrl-jax train PRESET --help lists them]",
        "       lrl-jax resume RUN [--total-steps N] [--checkpoint best] [--quiet]",
        "       lrl-jax test RUN [--episodes N] [--seed N] [--pick AGENT] [--checkpoint best]",
        "       lrl-jax show RUN",
        "       lrl-jax compare RUN [RUN ...] [--out FILE] [--measure NAME]",
        "resume, test and show take --config MODULE:CONFIG for runs with classes of your own",
        "",
        "presets:",
    ]
    for name in PRESETS:
        default = " (default)" if name == DEFAULT_PRESET else ""
        lines.append(f"  {name:24s} {about(name)}{default}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Entry point; errors of the user end with one line and exit code 2."""
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    command, *rest = args
    try:
        if command == "train":
            _train_command(rest)
        elif command == "test":
            test(tyro.cli(Test, args=rest, prog="lrl-jax test"))
        elif command == "resume":
            _resume_command(rest)
        elif command == "show":
            show(tyro.cli(Show, args=rest, prog="lrl-jax show"))
        elif command == "compare":
            _compare(tyro.cli(Compare, args=rest, prog="lrl-jax compare"))
        else:
            commands = "train, resume, test, show or compare"
            raise ValueError(f"unknown command {command!r}: use {commands}.\n{_usage()}")
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"lrl-jax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except FloatingPointError as error:
        print(f"lrl-jax: {error}", file=sys.stderr)
        raise SystemExit(3) from None
    except Interrupted as error:
        print(f"lrl-jax: {error}", file=sys.stderr)
        raise SystemExit(128 + error.signal) from None
    except KeyboardInterrupt as error:
        print(f"lrl-jax: interrupted. {error}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _train_command(args: list[str]) -> None:
    name = DEFAULT_PRESET
    if args and not args[0].startswith("-"):
        name, *args = args
    default = user_config(name) if ":" in name else preset(name)
    what = f"The config {name}." if ":" in name else about(name)
    given, quiet, go_on = args, "--quiet" in args, "--resume" in args
    args = [a for a in args if a not in ("--quiet", "--resume")]
    out, args = _take("--out", args, "a folder")
    if go_on and out is None:
        raise ValueError("--resume needs --out, the folder of the run.")
    coordinator, args = _take("--coordinator", args, "HOST:PORT")
    number, args = _take("--processes", args, "a number")
    index, args = _take("--process-id", args, "a number")
    config = parse(
        default,
        args,
        f"lrl-jax train {name}",
        f"{what} A number may replace a schedule, and --levels.0.NAME for the only "
        f"setting of that name below level 0. Further options: "
        f"--env-settings.NAME VALUE, --env-params.NAME VALUE, --sweep.PATH VALUE [VALUE ...].",
    )
    processes = _processes(coordinator, number, index)
    if processes is not None and out is None:
        raise ValueError("several processes need --out, the same folder for all of them.")
    if _needs_restart(config, processes):
        _restart(config, processes, ["train", name, *given])
    if processes is not None and config.devices == 1:
        config = dataclasses.replace(config, devices=jax.device_count())
    train(config, name.replace(":", "-"), Path(out) if out else None, quiet, go_on)


def _resume_command(args: list[str]) -> None:
    options = tyro.cli(Resume, args=args, prog="lrl-jax resume")
    user = None if options.config is None else user_config(options.config)
    env = None if user is None or isinstance(user.env, str) else user.env
    config = load_config(options.run, [] if user is None else own_classes(user), env)
    if _needs_restart(config, None):
        _restart(config, None, ["resume", *args])
    resume(options)


def _take(option: str, args: list[str], what: str) -> tuple[str | None, list[str]]:
    """The value of an option that is none of the config's, and the other arguments."""
    # "--out=FOLDER", as tyro takes its settings, is "--out FOLDER".
    prefix = f"{option}="
    args = [x for a in args for x in (a.split("=", 1) if a.startswith(prefix) else [a])]
    if option not in args:
        return None, args
    i = args.index(option)
    if i + 1 >= len(args):
        raise ValueError(f"{option} needs {what}.")
    return args[i + 1], args[:i] + args[i + 2 :]


@dataclasses.dataclass(frozen=True)
class Processes:
    """One of several processes that share their devices.

    Attributes:
        coordinator: address "host:port" of the first process, the same in all of them.
        number: how many there are.
        index: of this one, from 0 on.
    """

    coordinator: str
    number: int
    index: int

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}.")
        if self.number < 2:
            raise ValueError(f"--processes must be at least 2, got {self.number}.")
        if not 0 <= self.index < self.number:
            raise ValueError(f"--process-id must be from 0 to {self.number - 1}, got {self.index}.")


def _processes(coordinator: str | None, number: str | None, index: str | None) -> Processes | None:
    options = {"--coordinator": coordinator, "--processes": number, "--process-id": index}
    missing = [option for option, value in options.items() if value is None]
    if len(missing) == len(options):
        return None
    if coordinator is None or number is None or index is None:
        raise ValueError(f"several processes also need {', '.join(missing)}.")
    for option, value in (("--processes", number), ("--process-id", index)):
        if not value.isdigit():
            raise ValueError(f"{option} must be a whole number, got {value!r}.")
    return Processes(coordinator, int(number), int(index))


def _needs_restart(config: TrainConfig, processes: Processes | None) -> bool:
    """Whether devices are missing that could be had by asking before JAX looks for them."""
    if os.environ.get(_RESTARTED):
        return False
    if processes is not None:
        return True
    return jax.default_backend() == "cpu" and jax.device_count() < config.devices


def _restart(config: TrainConfig, processes: Processes | None, args: list[str]) -> NoReturn:
    """Begin this command again, joined with the other processes, or with more virtual devices.

    JAX has already looked for devices, as gymnax makes arrays when it is imported.
    """
    n_devices = -(-config.devices // (processes.number if processes else 1))
    environ = {**os.environ, _RESTARTED: "1"}
    if n_devices > 1:
        environ["JAX_NUM_CPU_DEVICES"] = str(n_devices)
    join = (
        ""
        if processes is None
        else f"jax.distributed.initialize(*{dataclasses.astuple(processes)!r});"
    )
    code = f"import jax; {join} from lrl_jax.cli import main; main()"
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-c", code, *args], environ)


if __name__ == "__main__":
    main()
