"""One process per GPU: who am I, and sums over all of us. Everything works alike without torchrun (a world of one)."""

import gc
import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .config import ConfigError


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def find_device(name: str, index: int = 0) -> torch.device:
    """`name` is "cpu" or "cuda". Raises ConfigError if there is no such GPU."""
    if name == "cuda" and index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device = cuda, but PyTorch sees {count} GPUs here: set device (or run.device) to cpu")
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def join_world(device: str) -> World:
    """Reads torchrun's environment. `device` is "cpu" or "cuda"."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    place = find_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if device == "cuda":
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    return World(rank, size, place)


def meet() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def leave_world() -> None:
    if dist.is_initialized():
        gc.collect()  # what still holds a group of FSDP's would keep its threads, and abort the process as it exits
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        if world_size() == 1:
            return x.clone()
        total = x.clone()
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # d mean / d x is 1 / size for each process, and the averaging of gradients over processes supplies just that.
        return gradient


def global_mean(x: Tensor) -> Tensor:
    """Mean over processes of a tensor that each computed from its own tokens. With gradients averaged over processes (DDP,
    FSDP), a nonlinear function of the result has the gradient it would have on one process that holds all tokens."""
    return _GlobalMean.apply(x)


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes, stacked along dimension 0 in order of rank. Shapes must agree."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Without waiting for what the device is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
