"""The gate: hidden state → scores z → one weight g per expert. An expert with g = 0 is off; the others are routed.

The formulas are those of the engine (engine/src/model/gate.ts), written so that gradients flow. Two things differ from
what is served, and checkpoint.py folds both away: a router reads its source less a fixed centre, and softmax gates give
N·p instead of p, so that a fresh DS-MoE layer starts at the size of a dense one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model_config import GateKind

FULL_OFFSET = 1e4
"""Offset of a clamped linear gate at share 1: every z clamps to exactly 1."""
STRAIGHT_THROUGH = 1.0
"""A clamped gate passes gradients this far outside [0, 1], so that an expert that is off can come back."""


class Routed(NamedTuple):
    """What a gate did to one layer's tokens."""

    z_BTN: Tensor
    """Scores before the share's threshold, float32."""
    g_BTN: Tensor
    """Weights, float32; exactly 0 where the expert is off."""


class Router(nn.Module):
    """z = W (x - centre) + b - mean(b), float32; with `units`, W acts on GELU(V (x - centre)), and both are computed in the
    activations' type: V is as wide as the model, and in float32 took a seventh of a step (docs/findings.md).

    The mean of the bias is the threshold's. Softmax does not see the difference.
    """

    def __init__(self, hidden: int, experts: int, units: int):
        super().__init__()
        self.register_buffer("centre_D", torch.zeros(hidden))
        self.hidden = nn.Linear(hidden, units) if units else None
        self.weight = nn.Parameter(torch.empty(experts, units or hidden))
        self.bias = nn.Parameter(torch.zeros(experts))

    def forward(self, source_BTD: Tensor) -> Tensor:
        bias = self.bias - self.bias.mean()
        if self.hidden is None:
            return F.linear(source_BTD.float() - self.centre_D, self.weight, bias)
        # V (x - centre) as V x - V centre: x, which others read too, is not written once more.
        dtype, inner = source_BTD.dtype, self.hidden.weight
        inner_bias = self.hidden.bias - inner @ self.centre_D
        u = F.gelu(F.linear(source_BTD, inner.to(dtype), inner_bias.to(dtype)))
        return F.linear(u, self.weight.to(dtype), bias.to(dtype)).float()


class Gate(nn.Module):
    """A router and its thresholds, one per share level.

    A clamped linear gate *adds* its threshold to z; a threshold softmax gate *compares* N·p with it.
    """

    def __init__(self, kind: GateKind, hidden: int, experts: int, units: int, top_k: int, shares: tuple[float, ...]):
        super().__init__()
        self.kind = kind
        self.top_k = top_k
        self.router = Router(hidden, experts, units)
        # Everything is on until the share control (share.py) has seen the scores.
        dense = FULL_OFFSET if kind == "clamped_linear" else 0.0
        start = 1.0 if kind == "clamped_linear" else 0.0
        self.register_buffer("threshold_S", torch.tensor([dense if share == 1 else start for share in shares]))

    def forward(self, source_BTD: Tensor, level_B: Tensor, available_BN: Tensor | None = None) -> Routed:
        """
        level_B: index of each sequence's share level
        available_BN: experts that may be used at all (false: not resident, as under the engine's `resident_first`)

        What flows back through a straight-through clamp teaches its router and stops there: in the hidden states it is noise,
        three quarters of their gradient's power and hardly any of its direction (docs/findings.md).
        """
        z_BTN = self.router(source_BTD.detach() if self.kind == "clamped_linear" else source_BTD)
        threshold_B11 = self.threshold_S[level_B][:, None, None]
        if self.kind == "clamped_linear":
            z_BTN = without_common_push(z_BTN)
            g_BTN = clamp_straight_through(z_BTN + threshold_B11)
        else:
            g_BTN = self._softmax(z_BTN, threshold_B11)
        if available_BN is not None:
            g_BTN = g_BTN * available_BN[:, None]
        return Routed(z_BTN, g_BTN)

    def _softmax(self, z_BTN: Tensor, threshold_B11: Tensor) -> Tensor:
        experts = z_BTN.shape[-1]
        p_BTN = F.softmax(z_BTN, -1)
        if self.top_k:
            on_BTN = torch.zeros_like(p_BTN).scatter(-1, z_BTN.topk(self.top_k, -1).indices, 1.0)
        else:
            on_BTN = (experts * p_BTN > threshold_B11).float()
        p_BTN = p_BTN * on_BTN
        if self.kind == "softmax_renormalised":
            return p_BTN / p_BTN.sum(-1, keepdim=True)
        return experts * p_BTN


def without_common_push(z_BTN: Tensor) -> Tensor:
    """The scores, with the mean of their gradient taken out of each sequence.

    A loss always wants more experts and pushes all scores up; the threshold takes that back in the next step. Left in, the
    push goes on for ever (docs/findings.md). By sequence, so that it is the same on any number of processes.
    """
    mean_B11 = z_BTN.mean((1, 2), keepdim=True)
    return z_BTN - (mean_B11 - mean_B11.detach())


def clamp_straight_through(z: Tensor) -> Tensor:
    """min(max(z, 0), 1) with the gradient of a clamp that is wider by STRAIGHT_THROUGH on both sides."""
    wide = z.clamp(-STRAIGHT_THROUGH, 1 + STRAIGHT_THROUGH)
    return wide + (z.clamp(0, 1) - wide).detach()
