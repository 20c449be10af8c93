"""One model on many devices: DDP by default, FSDP2 by a switch, torch.compile by another. What is computed stays the same."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from .distributed import World
from .tasks import EndToEnd, Layerwise

Task = EndToEnd | Layerwise


def wrap(task: Task, world: World, fsdp: bool) -> nn.Module:
    """Makes gradients the mean over all processes."""
    if fsdp and world.size > 1:
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in task.model.layers:
            # Stage 1 calls an FFN and its gate by themselves; end to end, a block is gathered as a whole.
            for part in [block] if isinstance(task, EndToEnd) else [block.mlp, *([block.gate] if block.gate else [])]:
                fully_shard(part, mesh=mesh)
        return fully_shard(task, mesh=mesh)
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(task, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    return task


def compile_parts(task: Task) -> None:
    """Compiles what repeats (the block, the chunk of the head, the residual error of a layer, the layer of stage 1) and the
    losses on the routing, dozens of small kernels otherwise."""
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.optimize_ddp = False  # a block is small enough to be one graph; DDP's buckets would cut it
    if isinstance(task, EndToEnd):
        for model in filter(None, (task.model, task.teacher)):
            for block in model.layers:
                block.compile(dynamic=False)
        task.chunk_loss = torch.compile(task.chunk_loss, dynamic=False)
        task.relative_error = torch.compile(task.relative_error, dynamic=False)
        task.routing_means = torch.compile(task.routing_means, dynamic=False)
        task.windowed_entropy = torch.compile(task.windowed_entropy, dynamic=False)
    else:
        for block in task.teacher.layers:
            block.compile(dynamic=False)
        task.layer_error = torch.compile(task.layer_error, dynamic=False)


def accumulating(module: nn.Module, last: bool):
    """Within it, gradients stay on their process unless this is the last micro-batch of the step."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def whole_state(module: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> tuple[dict, dict]:
    """States of the model and the optimiser by parameter name, whole, on the CPU of process 0 (elsewhere empty under FSDP)."""
    return get_model_state_dict(module, options=WHOLE), (
        {} if optimiser is None else get_optimizer_state_dict(module, optimiser, options=WHOLE)
    )


def restore_state(
    module: nn.Module, optimiser: torch.optim.Optimizer, model_state: dict, optimiser_state: dict, world: World
) -> None:
    """The inverse, from process 0 to all."""
    options = SPREAD if world.size > 1 else StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, model_state, options=options)
    set_optimizer_state_dict(module, optimiser, optimiser_state, options=options)


def model_part(task_state: dict) -> dict:
    """The model's own state_dict out of a wrapped task's."""
    return {name.split("model.", 1)[1]: value for name, value in task_state.items()}
