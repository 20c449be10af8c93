"""The learning rate over a stage, and which parameters it applies to."""

import math

import torch

from .config import Stage
from .model import Model


def rate(stage: Stage, step: int) -> float:
    """Part of the peak learning rate at a step (0 … steps - 1): linear warm-up, then cosine to the floor; or wsd: warm-up,
    stable, linear decay."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    progress = step / stage.steps
    if stage.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = min(1.0, (1 - progress) / stage.decay)
    return warm * (stage.floor + (1 - stage.floor) * shape)


def make_optimiser(model: Model, stage: Stage) -> torch.optim.AdamW:
    """AdamW with a rate of its own for matrices, routers, and embedding, head and norms. Weight decay is for matrices."""
    groups: dict[str, list] = {"matrix": [], "router": [], "embedding": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".router." in name:
            groups["router"].append(parameter)
        elif "norm" in name or name.startswith(("embed_tokens", "lm_head")):
            groups["embedding"].append(parameter)
        else:
            groups["matrix"].append(parameter)
    peaks = {"matrix": stage.lr, "router": stage.router_lr, "embedding": stage.embedding_lr}
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak": peaks[kind], "weight_decay": stage.weight_decay if kind == "matrix" else 0.0}
            for kind, parameters in groups.items()
            if parameters
        ],
        lr=stage.lr,
        betas=stage.betas,
        fused=True if next(model.parameters()).is_cuda else None,
    )


def set_rate(optimiser: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate(stage, step)


def freeze_still(model: Model, stage: Stage) -> None:
    """Parameters that have no rate need no gradient."""
    if stage.embedding_lr == 0:
        for name, parameter in model.named_parameters():
            if "norm" in name or name.startswith(("embed_tokens", "lm_head")):
                parameter.requires_grad_(False)
