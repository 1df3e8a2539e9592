"""Command line: `lrl-jax train [preset]` and `lrl-jax test RUN`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
    out, quiet = None, "--quiet" in args
    args = [a for a in args if a != "--quiet"]
    # "--out=FOLDER", as tyro takes its settings, is "--out FOLDER".
    args = [part for a in args for part in (a.split("=", 1) if a.startswith("--out=") else [a])]
    if "--out" in args:
        i = args.index("--out")
        if i + 1 >= len(args):
            raise ValueError("--out needs a folder.")
        out = Path(args[i + 1])
        args = args[:i] + args[i + 2 :]
    about, default = PRESETS[name]
    config = tyro.cli(
        # The agent's kind is the preset's: its settings are options, not those of a subcommand.
        tyro.conf.AvoidSubcommands[TrainConfig],
        default=default,
        args=args,
        prog=f"lrl-jax train {name}",
        description=about,
    )
    train(config, name, out, quiet)
