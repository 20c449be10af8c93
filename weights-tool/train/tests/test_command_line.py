import json
from pathlib import Path

import pytest
from conftest import settings

from dsmoe_train.__main__ import COMMANDS, main, make_parser
from dsmoe_train.config import ConfigError, Evaluate, Generate, Prepare, TrainConfig, load_config, show

FLAGS = """\
train SETTINGS --set SECTION.FIELD=VALUE
upcycle SETTINGS --set SECTION.FIELD=VALUE
data SETTINGS --set SECTION.FIELD=VALUE
generate SETTINGS --set SECTION.FIELD=VALUE
eval SETTINGS --set SECTION.FIELD=VALUE"""


def test_the_command_line_is_frozen():
    """What a command can do is a setting, not a flag."""
    commands = make_parser()._subparsers._group_actions[0].choices
    lines = []
    for name, parser in commands.items():
        actions = [action for action in parser._actions if action.dest != "help"]
        words = [f"{a.option_strings[0]} {a.metavar}" if a.option_strings else a.dest.upper() for a in actions]
        lines.append(" ".join([name, *words]))
    assert "\n".join(lines) == FLAGS and list(commands) == list(COMMANDS)


def toml(tree: dict) -> str:
    """Top-level fields, then sections; JSON's numbers, strings and lists are TOML's, inner tables are written inline."""

    def value(x):
        if isinstance(x, dict):
            return "{" + ", ".join(f"{k} = {value(v)}" for k, v in x.items()) + "}"
        if isinstance(x, list):
            return "[" + ", ".join(map(value, x)) + "]"
        return json.dumps(x)

    return "\n".join(f"{k} = {value(v)}" for k, v in tree.items())


@pytest.fixture
def file(world_of_files, tmp_path):
    config = settings(world_of_files, tmp_path / "run", "dense", **{"stages.end_to_end.steps": 2})
    path = tmp_path / "settings.toml"
    path.write_text(toml(config.model_dump(mode="json", exclude_none=True)))
    return path


def test_settings_come_from_a_file_and_overrides(file):
    config = load_config(TrainConfig, file, ["run.seed=7", "run.directory=elsewhere", "data.sources=[{directory='x'}]"])
    assert (config.run.seed, config.run.directory, config.data.sources[0].directory) == (7, "elsewhere", "x")
    assert config.stages.end_to_end.steps == 2


def test_train_from_the_command_line(file, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dsmoe-train", "train", str(file), "--set", "run.seed=3"])
    main()
    out = capsys.readouterr().out
    assert "run.seed = 3" in out and out.strip().endswith("checkpoint")


@pytest.mark.parametrize(
    "override, message",
    [
        ("run.seed", "expected section.field=value"),
        ("run.seed=red", "run.seed: Input should be a valid integer"),
        ("run.seed.more=1", "seed is no section"),
        ("run.none=1", "run.none: there is no such setting$"),
        ("device=cpu", "device: there is no such setting; there is run.device$"),
        ("data.tokens=0", "data.tokens: Input should be greater"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(override, message, file):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, file, [override])


@pytest.mark.parametrize("text, message", [("a = ", "is not TOML"), (None, "cannot read")])
def test_a_file_that_cannot_be_read(text, message, tmp_path):
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Prepare, path, [])


def test_errors_are_one_line_on_stderr(file, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dsmoe-train", "upcycle", str(file)])
    with pytest.raises(SystemExit, match=r"error: .*wants a section \[upcycle\]"):
        main()


def test_a_missing_gpu_is_no_riddle(monkeypatch, file):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("sys.argv", ["dsmoe-train", "train", str(file), "--set", "run.device=cuda"])
    with pytest.raises(SystemExit, match="PyTorch sees 0 GPUs here: set device .* to cpu"):
        main()


def test_a_directory_that_cannot_be_written_is_named(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr("sys.argv", ["dsmoe-train", "train", str(file), "--set", f"run.directory={tmp_path / 'taken'}"])
    with pytest.raises(SystemExit, match="error: .*taken"):
        main()


def test_all_settings_are_shown(file):
    lines = show(load_config(TrainConfig, file, [])).splitlines()
    assert 'run.dtype = "float32"' in lines and "objectives.locality_window = 64" in lines
    assert len(lines) > 60


KINDS = {
    "configs": {
        "teacher-text": Generate, "docs-text": Prepare, "release": TrainConfig, "narrowed": TrainConfig,
        "scratch": TrainConfig, "further": TrainConfig, "evaluation": Evaluate,
    },
    "release": {"chat": Generate, "free": Generate, "further": TrainConfig, "evaluation": Evaluate},
}  # fmt: skip


@pytest.mark.parametrize("folder", KINDS)
def test_the_settings_that_ship_are_valid(folder):
    home = Path(__file__).parents[1] / folder
    assert {path.stem for path in home.glob("*.toml")} - {"text"} == set(KINDS[folder])
    for name, kind in KINDS[folder].items():
        load_config(kind, home / f"{name}.toml", [])


def test_the_baselines_of_the_scratch_run_are_valid():
    path = Path(__file__).parents[1] / "configs" / "scratch.toml"
    dense = [word for word in path.read_text().split() if "=" in word and "." in word.split("=")[0]]
    overrides = [word.rstrip(",") for word in dense if word.startswith(("routing.", "objectives.", "share."))]
    only_dense = [o for o in overrides if o not in ("routing.gate=softmax", "routing.experts=32", "routing.top_k=13")]
    assert len(only_dense) == 10
    load_config(TrainConfig, path, [o for o in only_dense if "switch" not in o])
    smoe = load_config(TrainConfig, path, [*only_dense, "routing.gate=softmax", "routing.experts=32", "routing.top_k=13"])
    assert smoe.objectives.switch == 0.01
