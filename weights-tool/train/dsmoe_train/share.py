"""Keeping the promise of an active share: which share each sequence trains at, which experts it may use, and the
thresholds that make the shares true.

- Elastic share: every batch holds sequences at share 1 (a clamped linear gate is then the dense model itself), at the lowest
  share and in between (the sandwich rule of slimmable networks), so that one model serves them all.
- Threshold control: a threshold follows the batch quantile of the scores, so that the wanted part of them lies above it.
- Residency: some sequences see only a random part of the experts, as a cold start or a small arena does.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import gather, to_device
from .gate import Gate, Routed
from .model_config import GateKind

TOKENS_SAMPLED = 32
"""Tokens per sequence whose scores set the thresholds: quantiles of some thousand scores are sharp enough."""


def draw_levels(rng: np.random.Generator, sequences: int, weights: tuple[float, ...]) -> np.ndarray:
    """One share level per sequence, [B]: as many of each as its weight asks, in random order."""
    edges = np.cumsum(np.asarray(weights, dtype=np.float64)) / sum(weights)
    edges[-1] = 1.0
    places = (np.arange(sequences) + rng.random()) / sequences
    return rng.permutation(np.searchsorted(edges, places, side="right"))


def draw_available(
    rng: np.random.Generator,
    layers: int,
    sequences: int,
    experts: int,
    fraction: float,
    least: float,
    most: float = 1.0,
) -> np.ndarray | None:
    """[L, B, N], true where a sequence may use an expert. `fraction` of the sequences see a part of each layer's experts,
    between `least` and `most` of them. None if `fraction` is 0: every expert is there."""
    if fraction == 0:
        return None
    limited_B = rng.random(sequences) < fraction
    part_B = np.where(limited_B, rng.uniform(least, most, sequences), 1.0)
    count_B = np.ceil(part_B * experts)
    rank_LBN = rng.random((layers, sequences, experts)).argsort(-1).argsort(-1)
    return rank_LBN < count_B[:, None]


def spread(shares: tuple[float, ...], weights_L: list[float]) -> Tensor:
    """Target share of every layer at every level, [L, S], the mean over layers as asked; a layer with weight 2 gets twice the
    share of one with weight 1, as long as that is at most 1."""
    weights = torch.tensor(weights_L, dtype=torch.float64)
    columns = []
    for share in shares:
        low, high = 0.0, 1 / weights.min().item()
        for _ in range(60):  # bisection: the mean of min(scale · weight, 1) grows with the scale
            scale = (low + high) / 2
            low, high = (scale, high) if (scale * weights).clamp(max=1).mean() < share else (low, scale)
        columns.append((high * weights).clamp(max=1))
    return torch.stack(columns, 1).float()


def allocate(cost_LS: np.ndarray, shares: tuple[float, ...], mean_share: float) -> list[float]:
    """Shares per layer that cost least together at a given mean.

    cost_LS: what a layer costs alone at each of `shares` (upcycle.py measures it in nats of KL), shares ascending
    """
    level_L = np.zeros(len(cost_LS), dtype=int)
    budget = mean_share * len(cost_LS) - shares[0] * len(cost_LS)
    while True:
        best, gain = None, 0.0
        for layer, level in enumerate(level_L):
            for higher in range(level + 1, len(shares)):
                price = shares[higher] - shares[level]
                rate = (cost_LS[layer, level] - cost_LS[layer, higher]) / price
                if price <= budget + 1e-9 and rate > gain:
                    best, gain = (layer, higher, price), rate
        if best is None:
            return _top_up([shares[level] for level in level_L], mean_share)
        level_L[best[0]] = best[1]
        budget -= best[2]


def _top_up(share_L: list[float], mean_share: float) -> list[float]:
    """What the grid of shares left over goes evenly to the layers below 1."""
    for _ in share_L:
        open_ = sum(share < 1 for share in share_L)
        left = mean_share * len(share_L) - sum(share_L)
        if open_ == 0 or left <= 1e-9:
            break
        share_L = [min(1.0, share + left / open_) if share < 1 else share for share in share_L]
    return share_L


def target_threshold(kind: GateKind, z: Tensor, share: Tensor) -> Tensor:
    """The threshold above which `share` of the scores lie.

    z: [L, scores] for a clamped linear gate (threshold added: P(z + t > 0) = share); [L, tokens, N] for a softmax gate
    (threshold compared: P(N · p > t) = share)
    share: [L]
    """
    if kind == "clamped_linear":
        return -_quantiles(z.flatten(1), 1 - share)
    return _quantiles((z.shape[-1] * F.softmax(z, -1)).flatten(1), 1 - share)


def _quantiles(x: Tensor, part_L: Tensor) -> Tensor:
    """One quantile of each row, linear between neighbours."""
    sorted_LX = x.sort(1).values
    place_L = part_L.clamp(0, 1) * (x.shape[1] - 1)
    low = place_L.floor().long()[:, None]
    high = place_L.ceil().long()[:, None]
    return torch.lerp(sorted_LX.gather(1, low)[:, 0], sorted_LX.gather(1, high)[:, 0], place_L - place_L.floor())


@torch.no_grad()
def steer_thresholds(gates: list[Gate], routed: list[Routed], level_B: np.ndarray, target_LS: Tensor, rate: float) -> None:
    """Moves every threshold a part `rate` of the way to its batch quantile, from the scores of all processes.

    The scores are those *before* the threshold, so the step does not depend on where the threshold is. A level that no
    sequence trained at (the paper trains at share 1 only) goes by the scores of all; share 1 is exact and needs none.

    level_B: of the sequences of all processes, in order of rank. It and target_LS are on the CPU: asking a GPU which
    sequences to look at would make every step wait for the one before.
    """
    kind, device = gates[0].kind, routed[0].z_BTN.device
    stride = max(1, routed[0].z_BTN.shape[1] // TOKENS_SAMPLED)
    z_BLXN = gather(torch.stack([r.z_BTN.detach()[:, ::stride] for r in routed], 1))
    for level in range(target_LS.shape[1]):
        if (target_LS[:, level] == 1).all():
            continue
        chosen = np.flatnonzero(level_B == level)
        z_CLXN = z_BLXN.index_select(0, to_device(chosen, device)) if len(chosen) else z_BLXN
        z_LXN = z_CLXN.transpose(0, 1).flatten(1, 2)
        wanted_L = target_threshold(kind, z_LXN, to_device(target_LS[:, level].numpy(), device))
        torch._foreach_lerp_([gate.threshold_S[level] for gate in gates], list(wanted_L.unbind()), rate)


@torch.no_grad()
def shares_by_level(routed: list[Routed], level_B: Tensor, levels: int) -> Tensor:
    """Measured active share of every layer at every level, [L, S], over all processes; NaN where no sequence was."""
    active_BL = gather(torch.stack([(r.g_BTN > 0).float().mean((1, 2)) for r in routed], 1))
    level_B = gather(level_B)
    return torch.stack([active_BL[level_B == level].mean(0) for level in range(levels)], 1)


@torch.no_grad()
def mean_by_level(x_B: Tensor, level_B: Tensor) -> dict[int, float]:
    """Mean of a number per sequence at every level that a sequence was at, over all processes."""
    x_B, level_B = gather(x_B), gather(level_B)
    return {level: x_B[level_B == level].mean().item() for level in sorted(set(level_B.tolist()))}


class MutualInformationWeights:
    """α of the mutual-information loss, one per layer. Fixed as in the paper, or steered: up where a layer is more active than
    wanted, down where it is less, since one α for all leaves layers diffuse or collapses them (docs/findings.md)."""

    def __init__(self, layers: int, alpha: float, target_share_L: Tensor | None, device: torch.device):
        self.alpha_L = torch.full((layers,), alpha, device=device)
        self.target_L = None if target_share_L is None else target_share_L.to(device)

    @torch.no_grad()
    def steer(self, share_L: Tensor) -> None:
        """At most a tenth up or down a step."""
        if self.target_L is not None:
            self.alpha_L.mul_((0.6 * (share_L - self.target_L)).clamp(-0.1, 0.1).exp()).clamp_(1e-6, 0.03)
