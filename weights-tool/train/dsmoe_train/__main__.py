"""The command line behind `weights-tool train` and its siblings: `python -m dsmoe_train COMMAND settings.toml [--set
section.field=value ...]`. Errors go to stderr with exit code 1.
"""

import argparse
import json
import sys
from pathlib import Path

from .config import ConfigError, Evaluate, Generate, Prepare, TrainConfig, load_config

COMMANDS = {
    "train": "train a model from scratch, or a checkpoint further",
    "upcycle": "make a DS-MoE student of a dense checkpoint, and distil",
    "data": "turn text and chats into token shards",
    "generate": "let a checkpoint write text to train on",
    "eval": "measure a checkpoint at every share it serves",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsmoe-train", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("settings", type=Path, help="a TOML file; docs/training.md explains its fields")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.FIELD=VALUE",
            help="overrides one setting; repeatable",
        )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    try:
        _run(arguments.command, arguments.settings, arguments.set)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def _run(command: str, settings: Path, overrides: list[str]) -> None:
    # Imported when the settings are known to be good: PyTorch takes seconds.
    if command in ("train", "upcycle"):
        config = load_config(TrainConfig, settings, overrides)
        if (command == "upcycle") != (config.upcycle is not None):
            raise ConfigError(f"{settings}: `upcycle` wants a section [upcycle], `train` a section [model] or a `student`")
        from .trainer import train

        print(train(config) or "stopped: run the same command again to go on", flush=True)
    elif command == "data":
        config = load_config(Prepare, settings, overrides)
        from .prepare import prepare

        print(json.dumps(prepare(config)))
    elif command == "generate":
        config = load_config(Generate, settings, overrides)
        from .generate import generate

        print(json.dumps(generate(config)))
    else:
        config = load_config(Evaluate, settings, overrides)
        from .evaluate import evaluate

        print(evaluate(config))


if __name__ == "__main__":
    main()
