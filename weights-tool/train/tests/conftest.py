import json
import os
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from dsmoe_train.checkpoint import save_checkpoint
from dsmoe_train.config import TrainConfig
from dsmoe_train.data import ShardWriter, write_index
from dsmoe_train.model import Model, initialise
from dsmoe_train.model_config import ModelConfig, Routing
from dsmoe_train.trainer import train

torch.set_num_threads(1)

TINY = dict(vocab=96, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_units=160, context=64)


def tiny_config(routing: dict | None = None, **changes) -> ModelConfig:
    return ModelConfig(**{**TINY, "routing": Routing(**(routing or {})), **changes})


def tiny_model(routing: dict | None = None, *, seed: int = 0, **changes) -> Model:
    model = Model(tiny_config(routing, **changes))
    # Wider than a training start, so that gates differ and errors show.
    initialise(model, seed, std=0.15)
    return model


def tiny_ids(sequences: int = 3, tokens: int = 16, seed: int = 1, vocab: int = 96) -> torch.Tensor:
    return torch.randint(0, vocab, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


CLAMPED = dict(experts=4, shared_units=32, gate="clamped_linear", source="previous")
SOFTMAX = dict(experts=5, gate="softmax")
KINDS = ("dense", "dsmoe", "upcycle")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def text_home(directory: Path) -> Path:
    """A tokenizer of 96 one-letter tokens and a chat template, as they lie in a checkpoint directory."""
    directory.mkdir(parents=True, exist_ok=True)
    letters = [chr(33 + i) for i in range(94)]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text("{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")
    return directory


def token_shards(directory: Path, tokens: int = 20_000, seed: int = 0) -> Path:
    """A second-order walk over 96 tokens: something to learn, in both splits."""
    rng = np.random.default_rng(seed)
    step = np.random.default_rng(99).integers(0, 96, (96, 4))
    index = {}
    for split, count in (("train", tokens), ("held_out", tokens // 4)):
        ids = np.zeros(count, dtype=np.int64)
        choice = rng.integers(0, 4, count)
        for i in range(1, count):
            ids[i] = step[ids[i - 1], choice[i]]
        writer = ShardWriter(directory, split, 96, 2**14)
        writer.add(ids)
        index[split] = writer.close()
    write_index(directory, 96, index, {})
    return directory


@pytest.fixture(scope="session")
def world_of_files(tmp_path_factory) -> Path:
    """shards/: tokens; teacher/: a dense checkpoint; text/: a tokenizer."""
    home = tmp_path_factory.mktemp("files")
    token_shards(home / "shards")
    text_home(home / "text")
    teacher = tiny_model(seed=7)
    save_checkpoint(home / "teacher", teacher.config, teacher.state_dict(), home / "text")
    return home


def settings(home: Path, run: Path, kind: str, **changes) -> TrainConfig:
    """A tiny run: `dense` and `dsmoe` from scratch, `upcycle` from the teacher. `changes` are "section.field": value."""
    tree = {
        "run": {"directory": str(run), "device": "cpu", "dtype": "float32", "compile": False, "log_every": 1},
        "data": {"sources": [{"directory": str(home / "shards")}], "tokens": 32, "sequences": 8},
        "stages": {"end_to_end": {"steps": 12, "lr": 3e-3, "router_lr": 1e-3, "embedding_lr": 3e-3, "warmup": 3}},
    }
    if kind == "upcycle":
        tree |= {
            "teacher": str(home / "teacher"),
            "upcycle": {"sample_sequences": 8, "sensitivity_sequences": 2, "sensitivity": [0.25, 0.5, 1.0]},
            "routing": CLAMPED,
            "share": {"levels": [0.4, 0.7, 1.0], "weights": [2, 1, 1], "default": 0.7, "limited_fraction": 0.25},
            "objectives": {"kl": 1.0, "residual": 0.3, "locality": 0.1, "locality_window": 8},
        }
        layerwise = {"steps": 8, "lr": 1e-3, "router_lr": 1e-3, "warmup": 2}
        tree["stages"] = {
            "layerwise": layerwise,
            "end_to_end": {**tree["stages"]["end_to_end"], "lr": 1e-3, "embedding_lr": 1e-4, "quantise_from": 0.75},
        }
    else:
        tree |= {"tokenizer": str(home / "text" / "tokenizer.json"), "objectives": {"lm": 1.0}, "model": dict(TINY)}
    if kind == "dsmoe":
        tree["routing"] = {**SOFTMAX, "router_units": 16, "attention_experts": 2}
        tree["share"] = {"levels": [0.5, 1.0], "weights": [0, 1], "default": 0.5}
        tree["objectives"] |= {
            "mutual_information": 1e-2, "mutual_information_attention": 1e-3, "steer_mutual_information": True
        }  # fmt: skip
    for key, value in changes.items():
        place = tree
        *sections, field = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return TrainConfig.model_validate_json(json.dumps(tree))


@pytest.fixture(scope="session")
def runs(world_of_files, tmp_path_factory) -> dict[str, Path]:
    """Each kind of run, once."""
    home = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        train(settings(world_of_files, home / kind, kind))
    return {kind: home / kind for kind in KINDS}


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


ROOT = Path(__file__).parents[3]


def node(script: str | Path, *arguments: object, code: int = 0) -> str:
    """Runs a TypeScript file, of this folder or of the repository, with its own Node (`npm ci` puts it there). Returns what
    it prints; on stderr, if it is meant to fail."""
    environment = {**os.environ, "PATH": f"{ROOT}/node_modules/.bin:{os.environ['PATH']}"}
    command = ["node", str(Path(__file__).parent / script), *map(str, arguments)]
    reply = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert reply.returncode == code, reply.stderr
    return reply.stderr if code else reply.stdout
