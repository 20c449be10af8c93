"""What a run tells about itself while it runs: log.jsonl (one line per interval), a progress bar, TensorBoard on demand."""

import json
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .config import ConfigError, Run


class Log:
    """Only process 0 writes."""

    def __init__(self, run: Run, is_first: bool):
        self.path = Path(run.directory) / "log.jsonl" if is_first else None
        self.board = None
        if is_first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if run.tensorboard:
                try:
                    from torch.utils.tensorboard import SummaryWriter
                except ImportError as error:
                    raise ConfigError("run.tensorboard needs the package tensorboard") from error
                self.board = SummaryWriter(run.directory)
        self.bar: tqdm | None = None

    def start_stage(self, name: str, steps: int, done: int) -> None:
        if self.path is not None:
            self.bar = tqdm(total=steps, initial=done, desc=name, unit=" steps", dynamic_ncols=True)

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def write(self, stage: str, step: int, numbers: dict[str, float], vectors: dict[str, list[float]]) -> None:
        """numbers: shown on the bar and as curves; vectors: one number per layer."""
        if self.path is None:
            return
        line = {"stage": stage, "step": step, **{k: round(v, 6) for k, v in numbers.items()}, **vectors}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()})
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(f"{stage}/{name}", value, step)

    def end_stage(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


class Speed:
    """Tokens per second and FLOP utilisation since the last call; the first call of a stage (compilation) is not counted."""

    def __init__(self, device: torch.device, flops_per_token: float, peak_tflops: float):
        self.device, self.flops_per_token, self.peak = device, flops_per_token, peak_tflops * 1e12
        self.last: tuple[int, float] | None = None

    def measure(self, tokens: int) -> dict[str, float]:
        """tokens: those this process has seen."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = (tokens, time.monotonic())
        last, self.last = self.last, now
        if last is None:
            return {}
        per_second = (now[0] - last[0]) / (now[1] - last[1])
        numbers = {"tokens_per_second": per_second}
        if self.device.type == "cuda":
            numbers["mfu"] = per_second * self.flops_per_token / self.peak
            numbers["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return numbers


def layer_list(x_L: Tensor) -> list[float | None]:
    """JSON has no NaN: a share that no sequence trained at is null."""
    return [None if value != value else round(value, 4) for value in x_L.tolist()]
