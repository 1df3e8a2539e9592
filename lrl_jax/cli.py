"""Command line: `lrl-jax train [preset]` and `lrl-jax test RUN`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import numpy as np
import tyro

from lrl_jax.training import (
    DEFAULT_PRESET,
    PRESETS,
    Summary,
    TrainConfig,
    load_trainer,
    run_training,
)
from lrl_jax.training.sessions import test_episodes
from lrl_jax.training.statistics import bootstrap_interval, interquartile_mean

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
        pick: index, from 0, of the only agent to test in a run of several seeds.
    """

    run: Annotated[Path, tyro.conf.Positional]
    episodes: int = 256
    seed: int = 0
    pick: int | None = None

    def __post_init__(self):
        if self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}.")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}.")


def train(config: TrainConfig, name: str, out: Path | None, quiet: bool) -> None:
    """Run a preset and print what was reached and where things are."""
    run = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    agents = f"{config.seeds} agents" if config.seeds > 1 else ""
    print(
        f"training {agents and agents + ' of '}{name} on {config.env}: {config.total_steps} "
        f"environment steps{' each' if agents else ''} -> {run}"
    )
    summary = run_training(config, run, progress=not quiet)
    files = ", ".join(file for file in _FILES if (run / file).exists())
    print(
        f"\n{_results(summary)} over {summary.test_episodes} test episodes"
        f"{' of each agent' if agents else ''} after {summary.env_steps} environment steps\n"
        f"training took {summary.train_seconds:.0f} s with compilation and interim tests "
        f"({summary.steps_per_second:.0f} environment steps/s while training"
        f"{', all agents together' if agents else ''})\n"
        f"in {run}: {files}\n"
        f"look again with: lrl-jax test {run}"
    )


def _results(summary: Summary) -> str:
    if summary.return_interval is None:
        if summary.test_success is None:
            return f"return {summary.test_return:.1f} +- {summary.test_return_std:.1f}"
        return f"success {summary.test_success:.3f}, return {summary.test_return:.1f}"
    return _over_agents(summary.success_of_seeds, summary.return_of_seeds)


def _over_agents(success: Sequence[float] | None, returns: Sequence[float]) -> str:
    """The interquartile mean with its interval, of success (where there is) and return."""

    def figure(values: Sequence[float], digits: int) -> str:
        low, high = bootstrap_interval(values)
        mean = interquartile_mean(values)
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    parts = [] if success is None else [f"success {figure(success, 3)}"]
    parts.append(f"return {figure(returns, 1)}")
    return (
        f"{', '.join(parts)} (interquartile mean of {len(returns)} agents, 95% bootstrap interval)"
    )


def test(args: Test) -> None:
    """Evaluate a run's checkpoint and print the result."""
    trainer, state = load_trainer(args.run, args.pick)
    n_agents = trainer.config.seeds
    if args.pick is None and n_agents > 1:
        episodes = test_episodes(trainer, state, args.episodes, [args.seed] * n_agents)
        success = np.mean(episodes.success, axis=1) if trainer.has_success else None
        results = _over_agents(success, np.mean(episodes.episode_return, axis=1))
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


def _usage() -> str:
    lines = [
        "usage: lrl-jax train [PRESET] [--out FOLDER] [--quiet] [--seeds N]",
        "                     [--devices N] [--coordinator HOST:PORT --processes N --process-id I]",
        "                     [settings; lrl-jax train PRESET --help lists them]",
        "       lrl-jax test RUN [--episodes N] [--seed N] [--pick AGENT]",
        "",
        "presets:",
    ]
    for name, (about, _) in PRESETS.items():
        default = " (default)" if name == DEFAULT_PRESET else ""
        lines.append(f"  {name:24s} {about}{default}")
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
        else:
            raise ValueError(f"unknown command {command!r}: use train or test.\n{_usage()}")
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"lrl-jax: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _train_command(args: list[str]) -> None:
    name = DEFAULT_PRESET
    if args and not args[0].startswith("-"):
        name, *args = args
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}.")
    given, quiet = args, "--quiet" in args
    args = [a for a in args if a != "--quiet"]
    out, args = _take("--out", args, "a folder")
    coordinator, args = _take("--coordinator", args, "HOST:PORT")
    number, args = _take("--processes", args, "a number")
    index, args = _take("--process-id", args, "a number")
    about, default = PRESETS[name]
    config = tyro.cli(
        # The agent's kind is the preset's: its settings are options, not those of a subcommand.
        tyro.conf.AvoidSubcommands[TrainConfig],
        default=default,
        args=args,
        prog=f"lrl-jax train {name}",
        description=about,
    )
    processes = _processes(coordinator, number, index)
    if processes is not None and out is None:
        raise ValueError("several processes need --out, the same folder for all of them.")
    if _needs_restart(config, processes):
        _restart(config, processes, ["train", name, *given])
    if processes is not None and config.devices == 1:
        config = dataclasses.replace(config, devices=jax.device_count())
    train(config, name, Path(out) if out else None, quiet)


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

    JAX has looked for devices by now, as gymnax makes arrays when it is imported.
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
