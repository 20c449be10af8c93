"""What layers are made of: norm, matrix, rotary positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantise import fake_quantise


class RmsNorm(nn.Module):
    """x · (1 / sqrt(mean(x²) + eps)) · w, computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        f = x.float()
        return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Linear(nn.Module):
    """y = x Wᵀ. The weight is kept in float32, cast to the activations' type, and rounded to the pack's grid on demand."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.quantised = False

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(x.dtype))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second half of the outputs, each a product of its own: to put their gradients together in one
        tensor takes longer than one large product saves."""
        first, second = self._weight(x.dtype).chunk(2)
        return F.linear(x, first), F.linear(x, second)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return (fake_quantise(self.weight) if self.quantised else self.weight).to(dtype)


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """[head_dim / 2]"""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rotate(x_BTHE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotary positions, rotate-half; of a single token, heads may also stand before it."""
    first, second = x_BTHE.chunk(2, -1)
    return x_BTHE * cos_TE[:, None] + torch.cat([-second, first], -1) * sin_TE[:, None]
