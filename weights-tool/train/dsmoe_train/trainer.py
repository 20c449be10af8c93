"""The training loop, from settings to a checkpoint directory. In reading order: a run, its stages, a step.

A run makes (or resumes) a student, trains it in one or two stages, and writes, in `run.directory`:

    settings.txt   every setting          log.jsonl   one line per interval     plots/   loss, shares, use of experts
    snapshot.pt    where to resume        checkpoint/ what `weights-tool pack` takes
"""

import math
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_checkpoint, save_checkpoint
from .config import ConfigError, Stage, TrainConfig, show
from .continued import continued
from .data import TokenStream
from .distributed import World, global_mean, join_world, leave_world, meet, to_device
from .files import write_whole
from .logs import Log, Speed, layer_list
from .model import Model, initialise
from .model_config import ModelConfig
from .parallel import Task, accumulating, compile_parts, model_part, restore_state, whole_state, wrap
from .plots import plot_run
from .schedule import freeze_still, make_optimiser, set_rate
from .share import (
    MutualInformationWeights,
    draw_available,
    draw_levels,
    mean_by_level,
    shares_by_level,
    spread,
    steer_thresholds,
)
from .snapshot import Snapshot, fingerprint, generator_states, load_snapshot, restore_generators, save_snapshot
from .tasks import Batch, EndToEnd, Layerwise, StepOutput
from .upcycle import upcycle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STAGES = ("layerwise", "end_to_end")
FAST_START, FAST_RATE = 50, 0.5
"""Thresholds follow faster while they are far off."""
USE_MEMORY = 0.99
"""Decay per step of the running mean of how often each expert is used."""


@dataclass
class Student:
    """What training changes."""

    model: Model
    target_LS: Tensor
    """Target share of every layer at every level, on the CPU."""
    use_LN: Tensor
    """How often each expert was routed lately, at levels below 1."""
    alpha: MutualInformationWeights | None


# ---- A run ----------------------------------------------------------------------------------------------------------


def train(config: TrainConfig) -> Path | None:
    """Trains, or goes on training. Returns the checkpoint's directory, or None if it stopped at `run.stop_after_minutes`."""
    world = join_world(config.run.device)
    try:
        return train_in(world, config)
    finally:
        leave_world()


def train_in(world: World, config: TrainConfig) -> Path | None:
    """The same, in a world that is already joined."""
    stopwatch = Stopwatch(config)
    directory = Path(config.run.directory)
    torch.manual_seed(config.run.seed)
    torch.set_float32_matmul_precision("high")
    if world.is_first:
        settings = show(config)
        print(settings, flush=True)
        write_whole(directory / "settings.txt", lambda path: path.write_text(settings + "\n"))
    teacher = None
    if config.teacher:
        teacher = load_checkpoint(config.teacher, DTYPES[config.run.dtype]).to(world.device).requires_grad_(False)
    snapshot = load_snapshot(directory, config)
    student = _new_student(config, teacher, world) if snapshot is None else _resumed_student(config, snapshot, world)
    vocab = student.model.config.vocab
    stream = TokenStream(config.data.sources, "train", config.data.tokens, vocab, config.run.seed)
    if snapshot is not None:
        stream.position.taken = snapshot.taken
        restore_generators(snapshot.rng, world.device)

    log = Log(config.run, world.is_first)
    for name in STAGES:
        stage: Stage | None = getattr(config.stages, name)
        if stage is None or (snapshot and STAGES.index(name) < STAGES.index(snapshot.stage)):
            continue
        resumed = snapshot if snapshot and snapshot.stage == name else None
        runner = StageRunner(config, name, stage, student, teacher, stream, world, log, stopwatch)
        with stopwatch.listening():
            state = runner.run(resumed)
        if state is None:
            return None
        student = _rebuilt(student, state, config, world)
    log.close()

    checkpoint = directory / "checkpoint"
    if world.is_first:
        text_home = Path(config.tokenizer).parent if config.model else Path(config.student or config.teacher)
        quantised = config.stages.end_to_end.quantise_from < 1
        save_checkpoint(checkpoint, student.model.config, student.model.state_dict(), text_home, quantised=quantised)
        plot_run(directory / "log.jsonl", directory / "plots", student.use_LN)
    meet()  # nobody returns before the checkpoint is there
    return checkpoint


def _new_student(config: TrainConfig, teacher: Model | None, world: World) -> Student:
    share = config.share
    if config.upcycle is not None:
        model, layer_shares = upcycle(teacher, config, world)
    elif config.student:
        model, layer_shares = continued(config, world)
    else:
        served = {"routing": config.routing, "shares": share.levels, "default_share": share.default}
        model = Model(ModelConfig(**{**config.model.model_dump(exclude=set(served)), **served})).to(world.device)
        initialise(model, config.run.seed)
        layer_shares = None
    if layer_shares is None or share.layer_weights:
        layer_shares = spread(share.levels, list(share.layer_weights) or [1.0] * model.config.layers)
    return _student(config, model, layer_shares.cpu(), world)


def _student(config: TrainConfig, model: Model, target_LS: Tensor, world: World) -> Student:
    model.dtype = DTYPES[config.run.dtype]
    use_LN = torch.zeros(model.config.layers, model.config.routing.experts, device=world.device)
    alpha = None
    if config.objectives.mutual_information:
        default_L = target_LS[:, model.config.shares.index(model.config.default_share)]
        steered = default_L if config.objectives.steer_mutual_information else None
        alpha = MutualInformationWeights(model.config.layers, config.objectives.mutual_information, steered, world.device)
    return Student(model, target_LS, use_LN, alpha)


def _resumed_student(config: TrainConfig, snapshot: Snapshot, world: World) -> Student:
    model = Model(ModelConfig.model_validate_json(snapshot.student)).to(world.device)
    model.load_state_dict(snapshot.model)
    student = _student(config, model, snapshot.target_LS, world)
    student.use_LN = snapshot.use_LN.to(world.device)
    if student.alpha is not None:
        student.alpha.alpha_L = snapshot.alpha_L.to(world.device)
    return student


def _rebuilt(student: Student, state: dict, config: TrainConfig, world: World) -> Student:
    """A fresh module with the trained weights: the old one may be sharded, wrapped and compiled. Process 0 has them all."""
    model = Model(student.model.config).to(world.device)
    if state:
        model.load_state_dict(state)
    if world.size > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)
    model.dtype = DTYPES[config.run.dtype]
    return Student(model, student.target_LS, student.use_LN, student.alpha)


class Stopwatch:
    """When to save and when to stop, by the time since the run began: a start that upcycles takes a minute, and counts."""

    def __init__(self, config: TrainConfig):
        self.started = self.saved = time.monotonic()
        self.run = config.run
        self.asked = False

    def should_stop(self) -> bool:
        limit = self.run.stop_after_minutes
        return self.asked or (limit > 0 and time.monotonic() - self.started > 60 * limit)

    def should_save(self) -> bool:
        if time.monotonic() - self.saved < 60 * self.run.snapshot_minutes:
            return False
        self.saved = time.monotonic()
        return True

    @contextmanager
    def listening(self):
        """Ctrl-C and a scheduler's SIGTERM then mean: finish the step, save, stop."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_) -> None:
        self.asked = True


# ---- A stage --------------------------------------------------------------------------------------------------------


class StageRunner:
    """One optimiser's life: the steps of one stage, with snapshots on the way."""

    def __init__(
        self,
        config: TrainConfig,
        name: str,
        stage: Stage,
        student: Student,
        teacher: Model | None,
        stream: TokenStream,
        world: World,
        log: Log,
        stopwatch: Stopwatch,
    ):
        self.config, self.name, self.stage, self.student = config, name, stage, student
        self.stream, self.world, self.log, self.stopwatch = stream, world, log, stopwatch
        self.task: Task
        if name == "layerwise":
            self.task = Layerwise(student.model, teacher, config.objectives)
        else:
            freeze_still(student.model, stage)
            self.task = EndToEnd(student.model, teacher, config.objectives, student.alpha)
        self.speed = Speed(world.device, self.task.flops_per_token(), config.run.peak_tflops)
        if config.run.compile:
            compile_parts(self.task)
        self.module = wrap(self.task, world, config.run.fsdp)
        self.optimiser = make_optimiser(student.model, stage)

    def run(self, resumed: Snapshot | None) -> dict | None:
        """Returns the trained model's whole state (on process 0), or None if time ran out."""
        done = 0
        if resumed is not None:
            done = resumed.step
            task_state = {f"model.{name}": tensor for name, tensor in resumed.model.items()}
            restore_state(self.module, self.optimiser, task_state, resumed.optimiser, self.world)
        self.log.start_stage(self.name, self.stage.steps, done)
        for step in range(done, self.stage.steps):
            batch, output, norm = self._step(step)
            if step % self.config.run.log_every == 0 or step == self.stage.steps - 1:
                self._write(step, batch, output, norm)
            self.log.step()
            stop, save = self._agree(self.stopwatch.should_stop(), self.stopwatch.should_save())
            if stop or save:
                self._finite(step, norm)
                self._save(step + 1)
            if stop:
                self.log.end_stage()
                return None
        self.log.end_stage()
        state, _ = whole_state(self.module)
        return model_part(state)

    def _step(self, step: int) -> tuple[Batch, StepOutput, Tensor]:
        """Returns the last micro-batch, what became of it, and the norm of the gradient."""
        config, model = self.config, self.student.model
        progress = step / self.stage.steps
        model.set_quantised(progress >= self.stage.quantise_from)
        set_rate(self.optimiser, self.stage, step)
        parts = config.data.micro_batches
        for part in range(parts):
            batch, level_B = self._batch(step, part)
            with accumulating(self.module, last=part == parts - 1):
                output: StepOutput = self.module(batch, progress)
                (output.loss / parts).backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.stage.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.task.after_step(output)
        if model.gates() and not model.config.routing.top_k:
            steps_rate = FAST_RATE if step < FAST_START else config.share.rate
            steer_thresholds(model.gates(), output.ffn, level_B, self.student.target_LS, steps_rate)
        self._count_use(level_B, output)
        return batch, output, norm

    def _batch(self, step: int, part: int) -> tuple[Batch, np.ndarray]:
        """This process's sequences of one micro-batch, and the share levels of everybody's. All processes draw all of it, so
        that the number of processes changes nothing."""
        config, model, device = self.config, self.student.model.config, self.world.device
        count = config.data.sequences // config.data.micro_batches
        share, rng = config.share, np.random.default_rng([config.run.seed, STAGES.index(self.name), step, part])
        tokens = self.stream.next(count)
        levels = draw_levels(rng, count, share.weights)
        available = None
        if model.routing.gate != "all":
            available = draw_available(
                rng, model.layers, count, model.routing.experts, share.limited_fraction, share.limited_least
            )
        mine = self._mine(count)
        ids = to_device(tokens[mine], device)
        available = None if available is None else to_device(available[:, mine], device)
        return Batch(ids[:, :-1], ids[:, 1:].contiguous(), to_device(levels[mine], device), available), levels

    def _mine(self, sequences: int) -> slice:
        return slice(self.world.rank * sequences // self.world.size, (self.world.rank + 1) * sequences // self.world.size)

    @torch.no_grad()
    def _count_use(self, level_B: np.ndarray, output: StepOutput) -> None:
        if not output.ffn:
            return
        # At share 1 every expert is used, which says nothing.
        below_one = np.array([share < 1 for share in self.student.model.config.shares], dtype=np.float32)
        counted_B = below_one[level_B[self._mine(len(level_B))]]
        counted_B = to_device(counted_B if counted_B.any() else np.ones_like(counted_B), self.world.device)
        active_BLN = torch.stack([(routed.g_BTN > 0).float().mean(1) for routed in output.ffn], 1)
        use_LN = torch.einsum("b,bln->ln", counted_B, active_BLN) / counted_B.sum()
        self.student.use_LN.lerp_(use_LN, 1 - USE_MEMORY)

    def _write(self, step: int, batch: Batch, output: StepOutput, norm: Tensor) -> None:
        numbers = {"loss": output.loss.detach(), **output.parts}
        numbers = {name: global_mean(value).item() for name, value in numbers.items()}
        numbers["gradient_norm"] = self._finite(step, norm)
        numbers["lr"] = self.optimiser.param_groups[0]["lr"]
        vectors = {}
        shares = self.student.model.config.shares
        if output.ffn:
            share_LS = shares_by_level(output.ffn, batch.level_B, len(shares))
            for level, share in enumerate(shares):
                vectors[f"share_{share:g}"] = layer_list(share_LS[:, level])
        if output.kl_B is not None and len(shares) > 1:
            numbers |= {f"kl_{shares[level]:g}": kl for level, kl in mean_by_level(output.kl_B, batch.level_B).items()}
        if self.student.alpha is not None:
            vectors["alpha"] = [round(a, 7) for a in self.student.alpha.alpha_L.tolist()]
        tokens = (step + 1) * self.config.data.sequences * self.config.data.tokens // self.world.size
        self.log.write(self.name, step, {**numbers, **self.speed.measure(tokens)}, vectors)

    def _finite(self, step: int, norm: Tensor) -> float:
        """The gradient's norm, the same on all processes. Weights that met one that is no number are lost: never saved."""
        value = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
        if not math.isfinite(value):
            raise ConfigError(
                f"the gradient of step {step} of {self.name} is {value}, and the weights are lost. If it is the first, the "
                "checkpoint that training began with is damaged; otherwise lower the rates, or raise warmup. A snapshot.pt in "
                f"{self.config.run.directory} is of before"
            )
        return value

    def _agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Process 0 decides; clocks differ."""
        if self.world.size == 1:
            return stop, save
        decision = torch.tensor([stop, save], dtype=torch.int32, device=self.world.device)
        torch.distributed.broadcast(decision, 0)
        return bool(decision[0]), bool(decision[1])

    def _save(self, done: int) -> None:
        state, optimiser = whole_state(self.module, self.optimiser)
        if not self.world.is_first:
            return
        student, alpha = self.student, self.student.alpha
        snapshot = Snapshot(
            config=fingerprint(self.config),
            student=student.model.config.model_dump_json(),
            target_LS=student.target_LS,
            stage=self.name,
            step=done,
            model=model_part(state),
            optimiser=optimiser,
            alpha_L=None if alpha is None else alpha.alpha_L.cpu(),
            taken=list(self.stream.position.taken),
            use_LN=student.use_LN.cpu(),
            rng=generator_states(self.world.device),
        )
        save_snapshot(Path(self.config.run.directory), snapshot)
