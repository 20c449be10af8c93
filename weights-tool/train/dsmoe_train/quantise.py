"""Rounding weights to the grid they will be served on: the pack's q4 (docs/pack-format.md), w = R · s · (8q - z).

A float R per row; per block of 32 inputs a scale s and a zero point z, one byte each; 4-bit codes q. The search is a
vectorised, shorter form of the packer's (weights-tool/src/quantise.ts), cheap enough to run in every step of the
quantisation-aware tail; weights that were rounded here are found again by the packer up to the rounding of s and z.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32
TOP_CODE = 15
TOP_BYTE = 255
STEP_COUNTS = (15.0, 14.0, 16.0, 17.0)
"""How many steps a block's range may count; above 15 the outermost values are clipped so that the others win."""


class Plane(NamedTuple):
    """A matrix in q4, before it is laid out in tiles."""

    row_scale_R: Tensor
    scale_RG: Tensor
    zero_RG: Tensor
    code_RGC: Tensor
    """C: the 32 columns of a block."""

    def dequantise(self) -> Tensor:
        unit_RG1 = (self.row_scale_R[:, None] * self.scale_RG)[..., None]
        return (unit_RG1 * (8 * self.code_RGC - self.zero_RG[..., None])).flatten(1)


@torch.no_grad()
def q4(weight: Tensor) -> Plane:
    """Rounds a matrix [rows, cols], cols a multiple of 32. All parts are float32 holding whole numbers."""
    w_RGC = weight.float().unflatten(1, (-1, BLOCK))
    step_RG, low_RG = _best_grid(w_RGC)
    row_scale_R = step_RG.amax(1) / (8 * TOP_BYTE)
    safe_R1 = row_scale_R.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    below_RG = (step_RG / (8 * safe_R1)).floor()
    best = _round_block(w_RGC, safe_R1, below_RG.clamp(1, TOP_BYTE), low_RG)
    above = _round_block(w_RGC, safe_R1, (below_RG + 1).clamp(1, TOP_BYTE), low_RG)
    better_RG = above[0] < best[0]
    _, scale_RG, zero_RG, code_RGC = (
        torch.where(better_RG if b.ndim == 2 else better_RG[..., None], a, b) for a, b in zip(above, best, strict=True)
    )
    return Plane(row_scale_R, scale_RG, zero_RG, code_RGC)


def fake_quantise(weight: Tensor) -> Tensor:
    """The matrix on the q4 grid, with the gradient of the matrix itself (straight-through)."""
    return weight + (q4(weight.detach()).dequantise() - weight.detach())


def _best_grid(w_RGC: Tensor) -> tuple[Tensor, Tensor]:
    """The step and the low end, not yet rounded to bytes, that leave the smallest squared error in each block."""
    # A zero point is never negative, so a grid starts at or below zero.
    low_RG = w_RGC.amin(-1).clamp(max=0)
    high_RG = w_RGC.amax(-1).clamp(min=0)
    best = None
    for count in STEP_COUNTS:
        # …and it is at most 255 eighths of a step, so a grid far below zero needs larger steps.
        step_RG = torch.maximum((high_RG - low_RG) / count, low_RG * (-8 / TOP_BYTE))
        start_RG = (low_RG + max(0.0, count - TOP_CODE) / 2 * step_RG).clamp(max=0)
        safe_RG1 = step_RG.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        code_RGC = ((w_RGC - start_RG[..., None]) / safe_RG1).round().clamp(0, TOP_CODE)
        error_RG = (w_RGC - start_RG[..., None] - safe_RG1 * code_RGC).square().sum(-1)
        if best is None:
            best = (error_RG, step_RG, start_RG)
        else:
            better_RG = error_RG < best[0]
            best = tuple(torch.where(better_RG, a, b) for a, b in zip((error_RG, step_RG, start_RG), best, strict=True))
    return best[1], best[2]


def _round_block(w_RGC: Tensor, row_scale_R1: Tensor, scale_RG: Tensor, low_RG: Tensor) -> tuple[Tensor, ...]:
    """Squared error, scale, zero point and codes under a whole-number scale; the zero point is refined once, to the mean
    of 8q - w / (R·s)."""
    unit_RG1 = (row_scale_R1 * scale_RG)[..., None]
    x_RGC = w_RGC / unit_RG1
    zero_RG1 = (-low_RG[..., None] / unit_RG1).round().clamp(0, TOP_BYTE)
    code_RGC = ((x_RGC + zero_RG1) / 8).round().clamp(0, TOP_CODE)
    zero_RG1 = (8 * code_RGC - x_RGC).mean(-1, keepdim=True).round().clamp(0, TOP_BYTE)
    code_RGC = ((x_RGC + zero_RG1) / 8).round().clamp(0, TOP_CODE)
    error_RG = (unit_RG1 * (8 * code_RGC - zero_RG1) - w_RGC).square().sum(-1)
    return error_RG, scale_RG, zero_RG1[..., 0], code_RGC
