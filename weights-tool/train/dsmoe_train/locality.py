"""How well small caches of experts would do, from which experts a model routed."""

import torch
from torch import Tensor

WARM = 8
"""The first eighth of a sequence fills the cache and is not counted."""


def locality(on_LBTN: Tensor) -> dict[str, float | dict[str, float]]:
    """on_LBTN: true where an expert was routed, bool."""
    tokens, experts = on_LBTN.shape[2:]
    count_LBT = on_LBTN.sum(-1).float()
    both = (on_LBTN[:, :, 1:] & on_LBTN[:, :, :-1]).sum()
    result = {
        "active_mean": count_LBT.mean().item(),
        "active_p95": _percentile(count_LBT, 0.95),
        "routed_by_previous_token": (both / on_LBTN[:, :, 1:].sum()).item(),
    }
    for window in (32, 256):
        if tokens >= window:
            touched = on_LBTN[:, :, : tokens // window * window].unflatten(2, (-1, window)).any(3)
            result[f"touched_in_{window}_tokens"] = touched.float().mean().item()
    capacities = sorted({max(1, round(experts * part)) for part in (1 / 3, 1 / 2, 2 / 3)})
    result["lru_hits"] = {str(capacity): lru_hits(on_LBTN, capacity) for capacity in capacities}
    return result


def lru_hits(on_LBTN: Tensor, capacity: int) -> float:
    """Part of the routed experts that are in a cache of `capacity` experts per layer, least recently used out first. Experts of
    one token are touched in ascending order; a token that routes more than fit keeps the last."""
    layers, sequences, tokens, experts = on_LBTN.shape
    # Recency: the larger, the later it was touched. Never touched: below every touch.
    touched = torch.full((layers, sequences, experts), -1, device=on_LBTN.device, dtype=torch.long)
    order_N = torch.arange(experts, device=on_LBTN.device)
    hits = uses = torch.zeros((), device=on_LBTN.device)
    for t in range(tokens):
        on_LBN = on_LBTN[:, :, t]
        resident = (touched >= 0) & (touched >= touched.topk(capacity, -1).values[..., -1:])
        if t >= tokens // WARM:
            hits = hits + (on_LBN & resident).sum()
            uses = uses + on_LBN.sum()
        touched = torch.where(on_LBN, t * experts + order_N, touched)
    return (hits / uses.clamp(min=1)).item()


def _percentile(x: Tensor, part: float) -> float:
    ordered = x.flatten().sort().values
    return ordered[int(part * (len(ordered) - 1))].item()
