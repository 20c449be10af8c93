"""The way a person goes: every command through `weights-tool`, and what the engine makes of the result."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, node, settings, text_home, tiny_ids
from test_command_line import toml

from dsmoe_train.checkpoint import load_checkpoint
from dsmoe_train.config import Evaluate
from dsmoe_train.evaluate import evaluate
from dsmoe_train.model import Model
from dsmoe_train.trainer import train

CLI = ROOT / "weights-tool" / "src" / "cli.ts"
EXACT = ("--embedding", "q8", "--attention", "q8", "--experts-layout", "q8")


def weights_tool(*arguments: object, code: int = 0) -> str:
    return node(CLI, *arguments, code=code)


def write(path: Path, tree: dict) -> Path:
    path.write_text(toml(tree))
    return path


def test_from_text_to_a_pack(tmp_path):
    """data → train → eval → pack, two steps of training long."""
    text_home(tmp_path / "text")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": "abcdefgh"[i % 7 :] * 30}) + "\n" for i in range(40)))
    python = ("--python", sys.executable)
    prepare = {"inputs": [str(tmp_path / "lines.jsonl")], "tokenizer": str(tmp_path / "text" / "tokenizer.json"),
               "output": str(tmp_path / "data"), "held_out": 0.5, "deduplicate": False}  # fmt: skip
    counts = json.loads(weights_tool("data", write(tmp_path / "data.toml", prepare), *python))
    assert counts["train_tokens"] > 0 and counts["held_out_tokens"] > 0

    config = settings(tmp_path, tmp_path / "run", "dense", **{"data.sources": [{"directory": str(tmp_path / "data")}]})
    run = write(tmp_path / "run.toml", config.model_dump(mode="json", exclude_none=True))
    out = weights_tool("train", run, *python, "--set", "stages.end_to_end.steps=2", "--set", "run.seed=3", "--gpus", 1)
    assert "run.seed = 3" in out and out.strip().endswith(str(tmp_path / "run" / "checkpoint"))

    evaluation = {"checkpoint": str(tmp_path / "run" / "checkpoint"), "output": str(tmp_path / "evaluation"), "device": "cpu",
                  "texts": {"lines": str(tmp_path / "data")}, "tokens": 16}  # fmt: skip
    assert "| lines |" in weights_tool("eval", write(tmp_path / "eval.toml", evaluation), *python)
    weights_tool("pack", tmp_path / "run" / "checkpoint", "--out", tmp_path / "pack", "--experts", 5)
    assert json.loads((tmp_path / "pack" / "manifest.json").read_text())["config"]["experts"] == 5

    assert "error: " in weights_tool("train", tmp_path / "none.toml", *python, code=1)
    assert "run.colour" in weights_tool("train", run, *python, "--set", "run.colour=red", code=1)


@pytest.fixture(scope="session")
def routed(runs, world_of_files, tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of a trained clamped linear and a trained softmax student, with a measured curve."""
    home = tmp_path_factory.mktemp("routed")
    shutil.copytree(runs["upcycle"] / "checkpoint", home / "clamped")
    plain = {"routing.router_units": 0, "routing.attention_experts": 1, "objectives.mutual_information_attention": 0.0}
    train(settings(world_of_files, home / "run", "dsmoe", **plain))
    shutil.copytree(home / "run" / "checkpoint", home / "softmax")
    for name in ("clamped", "softmax"):
        fields = {"checkpoint": str(home / name), "teacher": str(world_of_files / "teacher"), "output": str(home / f"e-{name}")}
        evaluate(Evaluate(**fields, device="cpu", texts={"walk": str(world_of_files / "shards")}, sequences=4, tokens=32))
    return {name: home / name for name in ("clamped", "softmax")}


@pytest.mark.parametrize("name", ["clamped", "softmax"])
def test_the_engine_computes_what_was_trained(name, routed, tmp_path):
    """At every share: the pack's logits are PyTorch's on the pack's own weights, and with 8 bits close to the trained ones."""
    weights_tool("pack", routed[name], "--out", tmp_path / "pack", *EXACT)
    weights_tool("unpack", tmp_path / "pack", "--out", tmp_path / "unpacked")
    trained, packed = load_checkpoint(routed[name]), load_checkpoint(tmp_path / "unpacked")
    assert packed.config == trained.config and len(trained.config.shares) > 1
    ids = tiny_ids(1, 48)
    engine = json.loads(node("logits.ts", tmp_path / "pack", json.dumps(ids[0].tolist())))
    assert sorted(map(float, engine)) == list(trained.config.shares)
    active = []
    for share, values in engine.items():
        logits = torch.tensor(values).view(1, 48, -1)
        level = trained.config.shares.index(float(share))
        expected, share_of_it = at_share(packed, ids, level)
        assert (logits - expected).abs().max() < 1e-3
        active.append(share_of_it)
        exact = at_share(trained, ids, level)[0].log_softmax(-1)
        assert (exact.exp() * (exact - logits.log_softmax(-1))).sum(-1).mean() < 1e-3
    # A test that only ever sees every expert would prove little.
    assert min(active) < 0.95 and max(active) == 1


@torch.no_grad()
def at_share(model: Model, ids: torch.Tensor, level: int) -> tuple[torch.Tensor, float]:
    """Logits, and the share of experts that was active."""
    output = model(ids, level_B=torch.tensor([level]))
    return output.head, torch.stack([(r.g_BTN > 0).float().mean() for r in output.ffn]).mean().item()


@pytest.mark.parametrize("name", ["clamped", "softmax"])
def test_the_manifest_carries_the_measured_curve(name, routed, tmp_path):
    weights_tool("pack", routed[name], "--out", tmp_path / "pack")
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    report = json.loads((routed[name].parent / f"e-{name}" / "evaluation.json").read_text())
    measured = {r["share"]: r["texts"]["walk"] for r in report["shares"]}
    assert [row["share"] for row in manifest["quality"]] == list(measured)
    for row in manifest["quality"]:
        assert row["text"] == "walk"
        assert (row["perplexity"], row["kl"]) == (measured[row["share"]]["perplexity"], measured[row["share"]]["kl"])
    profile, config = torch.tensor(manifest["profile"]), manifest["config"]
    assert profile.shape == (config["layers"], config["experts"])
    default = load_checkpoint(routed[name]).config.default_share
    assert profile.mean() == pytest.approx(measured[default]["active_share"], abs=1e-3)
    assert "walk" in weights_tool("inspect", tmp_path / "pack")
