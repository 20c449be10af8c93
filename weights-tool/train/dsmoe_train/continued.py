"""A checkpoint that is trained further, on other text or at other rates. What it does not say is measured on a sample: how its
layers spread each share, and where the means of its gates' sources lie."""

import torch
from torch import Tensor

from .checkpoint import load_checkpoint
from .config import ConfigError, TrainConfig
from .data import TokenStream
from .distributed import World
from .gate import Gate
from .model import Model
from .share import shares_by_level, spread

SAMPLE = 64
"""Sequences."""
BATCH = 8


def continued(config: TrainConfig, world: World) -> tuple[Model, Tensor | None]:
    """Returns the student and the target share of every layer at every level (None: nothing to steer). Every process does
    the same work and gets the same student."""
    student = load_checkpoint(config.student).to(world.device)
    served = student.config
    if (config.share.levels, config.share.default) != (served.shares, served.default_share):
        raise ConfigError(
            f"{config.student} serves the shares {list(served.shares)}, by default {served.default_share}: "
            "set share.levels and share.default to these"
        )
    if config.objectives.mutual_information and "softmax" not in served.routing.gate:
        raise ConfigError(f"{config.student} has {served.routing.gate} gates; mutual information is defined for softmax gates")
    if not student.gates() or served.routing.top_k:
        return student, None
    sample = TokenStream(config.data.sources, "train", config.data.tokens, served.vocab, config.run.seed + 1)
    ids_BT = torch.from_numpy(sample.next(SAMPLE)[:, :-1]).to(world.device)
    target_LS = torch.stack([_spread_as_measured(student, ids_BT, level) for level in range(len(served.shares))], 1)
    _centre_gates(student, ids_BT)
    return student, target_LS


@torch.no_grad()
def _spread_as_measured(student: Model, ids_BT: Tensor, level: int) -> Tensor:
    """[L]: the share, spread over the layers as the thresholds do it."""
    levels = len(student.config.shares)
    active_PL = []
    for part in ids_BT.split(BATCH):
        level_B = part.new_full((len(part),), level)
        routed = student(part, lambda *_: None, level_B=level_B).ffn
        active_PL.append(shares_by_level(routed, level_B, levels)[:, level])
    active_L = torch.stack(active_PL).mean(0).clamp(min=1e-3)
    return spread((student.config.shares[level],), active_L.tolist())[:, 0]


@torch.no_grad()
def _centre_gates(student: Model, ids_BT: Tensor) -> None:
    """A checkpoint's routers read their sources as they are; a mean far from zero would let every score's gradient move all
    of them at once."""
    means = [0.0] * student.config.layers
    parts = ids_BT.split(BATCH)
    for part in parts:
        inputs = student(part, lambda *_: None, keep=True).ffn_input
        means = [mean_D + h_BTD.float().mean((0, 1)) / len(parts) for mean_D, h_BTD in zip(means, inputs, strict=True)]
    for layer, block in enumerate(student.layers):
        move_centre(block.gate, means[layer - 1 if block.reads_previous else layer])


@torch.no_grad()
def move_centre(gate: Gate, centre_D: Tensor) -> None:
    """Gives a router another centre. Its weights and thresholds mean what they meant."""
    router = gate.router
    moved_D = centre_D - router.centre_D
    if router.hidden is not None:
        router.hidden.bias += router.hidden.weight @ moved_D
    else:
        push_N = router.weight @ moved_D
        router.bias += push_N
        if gate.kind == "clamped_linear":  # the mean of the bias is the threshold's
            gate.threshold_S += push_N.mean()
    router.centre_D.copy_(centre_D)
