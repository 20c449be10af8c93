import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import KINDS, log_lines, settings
from safetensors.torch import load_file

from dsmoe_train.checkpoint import load_checkpoint
from dsmoe_train.config import ConfigError
from dsmoe_train.schedule import rate
from dsmoe_train.snapshot import load_snapshot
from dsmoe_train.trainer import Stopwatch, train

GOLDEN = Path(__file__).parent / "goldens" / "losses.json"
SETTLED, ROUNDED = 1e-3, 1e-2
"""How closely the losses of two runs agree that add in another order; in the quantised tail a last bit can be a step of the
4-bit grid."""


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_they_were(kind, runs):
    """Recorded curves; `UPDATE_GOLDENS=1 pytest tests/test_trainer.py` records them anew after a change that means to move
    them."""
    curve = [line["loss"] for line in log_lines(runs[kind])]
    goldens = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(json.dumps({**goldens, kind: curve}, indent=1) + "\n")
    else:
        assert_curves_agree(kind, curve, goldens[kind])


def settled_lines(kind: str, lines: int) -> int:
    """How many of a log's lines come before its run rounds weights: quantise_from = 0.75 of 12 steps."""
    return lines - 3 if kind == "upcycle" else lines


def assert_curves_agree(kind: str, curve: list[float], expected: list[float]) -> None:
    settled = settled_lines(kind, len(expected))
    assert len(curve) == len(expected)
    assert curve[:settled] == pytest.approx(expected[:settled], rel=SETTLED)
    assert curve[settled:] == pytest.approx(expected[settled:], rel=ROUNDED)


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_learns(kind, runs):
    lines = log_lines(runs[kind])
    for stage in {line["stage"] for line in lines}:
        name = {"layerwise": "ffn_error", "end_to_end": "kl" if kind == "upcycle" else "lm"}[stage]
        of_stage = [line[name] for line in lines if line["stage"] == stage]
        if kind == "upcycle":  # a random teacher: the student starts close to it and stays there
            assert of_stage[-1] < 1.4 * of_stage[0]
        else:
            assert of_stage[-1] < of_stage[0] - 0.1


def test_a_run_leaves_what_it_promises(runs):
    for kind, run in runs.items():
        names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert {"settings.txt", "log.jsonl", "checkpoint/config.json", "checkpoint/model.safetensors"} <= names
        assert {"checkpoint/tokenizer.json", "checkpoint/chat_template.jinja", "plots/loss-end_to_end.svg"} <= names
        assert ("plots/experts.svg" in names) == (kind != "dense")
        assert not [name for name in names if Path(name).name.startswith(".")]
    distilled = [line for line in log_lines(runs["upcycle"]) if line["stage"] == "end_to_end"]
    assert all({"kl_0.4", "kl_0.7", "kl_1"} <= line.keys() and line["kl_1"] < line["kl_0.4"] for line in distilled)
    assert "stages.end_to_end.betas = [0.9, 0.99]" in (runs["dense"] / "settings.txt").read_text()


def test_an_upcycled_model_at_share_one_is_near_its_teacher(runs, world_of_files):
    student = load_checkpoint(runs["upcycle"] / "checkpoint")
    teacher = load_checkpoint(world_of_files / "teacher")
    ids = torch.arange(48).view(3, 16)
    with torch.no_grad():
        full = student(ids, level_B=torch.full((3,), 2)).head.log_softmax(-1)
        dense = teacher(ids).head.log_softmax(-1)
    assert (dense.exp() * (dense - full)).sum(-1).mean() < 0.05


def test_a_compiled_run_is_the_same_run_in_few_graphs(runs, world_of_files, tmp_path, monkeypatch):
    """Traced as on a GPU, executed without code generation: what is traced once serves all layers."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(settings(world_of_files, tmp_path, "upcycle", **{"run.compile": True}))
    assert_curves_agree("upcycle", *([line["loss"] for line in log_lines(run)] for run in (tmp_path, runs["upcycle"])))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 10 and not torch._dynamo.utils.counters["graph_break"]


class StopAfter:
    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("kind, stops", [("dense", [5]), ("dsmoe", [5]), ("upcycle", [3, 5, 10])])
def test_a_stopped_run_goes_on_bit_for_bit(kind, stops, runs, world_of_files, tmp_path, monkeypatch):
    """Stops within both stages and within the quantisation-aware tail."""
    for steps in stops:
        monkeypatch.setattr(Stopwatch, "should_stop", StopAfter(steps).__call__)
        assert train(settings(world_of_files, tmp_path / "run", kind)) is None
    monkeypatch.undo()
    train(settings(world_of_files, tmp_path / "run", kind))
    whole, resumed = (load_file(run / "checkpoint" / "model.safetensors") for run in (runs[kind], tmp_path / "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    strip = lambda line: {k: v for k, v in line.items() if k != "tokens_per_second"}
    assert [strip(line) for line in log_lines(runs[kind])] == [strip(line) for line in log_lines(tmp_path / "run")]


def test_a_signal_means_save_and_stop(world_of_files, tmp_path, monkeypatch):
    """As Ctrl-C and a scheduler send them; outside of a stage they do what they always do."""
    before, third = signal.getsignal(signal.SIGTERM), StopAfter(3)
    monkeypatch.setattr(Stopwatch, "should_save", lambda _: third() and signal.raise_signal(signal.SIGTERM))
    assert train(settings(world_of_files, tmp_path, "dense")) is None
    assert load_snapshot(tmp_path, settings(world_of_files, tmp_path, "dense")).step == 4
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_snapshot_of_other_settings_is_refused(world_of_files, tmp_path, monkeypatch):
    monkeypatch.setattr(Stopwatch, "should_stop", StopAfter(2).__call__)
    train(settings(world_of_files, tmp_path, "dense"))
    with pytest.raises(ConfigError, match="other settings"):
        train(settings(world_of_files, tmp_path, "dense", **{"stages.end_to_end.steps": 13}))


def test_micro_batches_change_nothing(runs, world_of_files, tmp_path):
    train(settings(world_of_files, tmp_path, "dense", **{"data.micro_batches": 4, "run.tensorboard": True}))
    whole, parts = (load_file(run / "checkpoint" / "model.safetensors") for run in (runs["dense"], tmp_path))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=2e-4)
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.fixture(scope="session")
def runs_of_two(world_of_files, tmp_path_factory) -> dict[tuple[str, bool], Path]:
    """Two processes (gloo), one launch for all: DDP, and FSDP2 where the second of the key says so."""
    home = tmp_path_factory.mktemp("two")
    keys = [("dsmoe", False), ("upcycle", False), ("dense", True), ("upcycle", True)]
    configs = [settings(world_of_files, home / f"{kind}-{fsdp}", kind, **{"run.fsdp": fsdp}) for kind, fsdp in keys]
    (home / "two.py").write_text(
        "import sys\n"
        "from dsmoe_train.config import TrainConfig\n"
        "from dsmoe_train.distributed import join_world, leave_world\n"
        "from dsmoe_train.trainer import train_in\n"
        "world = join_world('cpu')\n"
        "for config in sys.argv[1:]:\n"
        "    train_in(world, TrainConfig.model_validate_json(config))\n"
        "leave_world()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*launch, str(home / "two.py"), *(config.model_dump_json() for config in configs)]
    reply = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert reply.returncode == 0, reply.stderr
    return {key: Path(config.run.directory) for key, config in zip(keys, configs, strict=True)}


@pytest.mark.parametrize("kind, fsdp", [("dsmoe", False), ("upcycle", False), ("dense", True), ("upcycle", True)])
def test_two_processes_do_what_one_does(kind, fsdp, runs, runs_of_two):
    """At the same global batch."""
    one, two = log_lines(runs[kind]), log_lines(runs_of_two[kind, fsdp])
    assert_curves_agree(kind, [line["loss"] for line in two], [line["loss"] for line in one])
    for line, (a, b) in enumerate(zip(one, two, strict=True)):
        # On the grid a last bit can be a whole step, and three of the 256 choices at a share then flip.
        limit = 0.01 if line < settled_lines(kind, len(one)) else 0.02
        for name in (name for name in a if name.startswith("share_")):
            assert b[name] == pytest.approx(a[name], abs=limit)
    whole, split = (load_file(run / "checkpoint" / "model.safetensors") for run in (runs[kind], runs_of_two[kind, fsdp]))
    for name, tensor in whole.items():
        # Rounded to 4 bits at the end, a last bit of difference can be a whole step.
        limit = 0.05 if kind == "upcycle" else 0.01
        assert (split[name] - tensor).norm() <= limit * tensor.norm() + 1e-6, name


def test_a_broken_snapshot_is_named(world_of_files, tmp_path):
    (tmp_path / "snapshot.pt").write_bytes(b"PK\3\4 half a file")
    with pytest.raises(ConfigError, match="delete it to start over"):
        train(settings(world_of_files, tmp_path, "dense"))


@pytest.mark.parametrize(
    "schedule, points",
    [
        ("cosine", {0: 0.1, 9: 0.98, 50: 0.55, 99: 0.1}),
        ("wsd", {0: 0.1, 9: 1.0, 79: 1.0, 90: 0.55, 99: 0.145}),
    ],
)
def test_schedules(schedule, points, world_of_files, tmp_path):
    stage = settings(world_of_files, tmp_path, "dense").stages.end_to_end.model_copy(
        update={"schedule": schedule, "steps": 100, "warmup": 10, "floor": 0.1, "decay": 0.2}
    )
    for step, expected in points.items():
        assert rate(stage, step) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("dense", {"objectives.kl": 1.0}, "need a `teacher`"),
        ("dense", {"objectives.lm": 0.0}, "nothing to learn"),
        ("dense", {"upcycle": {}, "teacher": "x"}, "either"),
        ("dense", {"student": "x"}, "either"),
        ("dense", {"tokenizer": ""}, "tokenizer"),
        ("dense", {"data.micro_batches": 3}, "multiple of data.micro_batches"),
        ("dense", {"objectives.mutual_information": 1.0}, "softmax gates"),
        ("upcycle", {"objectives.locality_window": 7}, "locality_window"),
        ("upcycle", {"share.weights": [1.0]}, "one number per level"),
        ("upcycle", {"run.colour": "red"}, "Extra inputs"),
        ("upcycle", {"run.seed": "1"}, "valid integer"),
    ],
)
def test_settings_that_cannot_be_used(kind, changes, message, world_of_files, tmp_path):
    with pytest.raises(ValueError, match=message):
        settings(world_of_files, tmp_path, kind, **changes)
