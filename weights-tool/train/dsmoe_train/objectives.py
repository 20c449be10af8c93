"""What is minimised. Every loss is a mean over tokens in nats, so that weights mean the same at any batch size.

In reading order: losses on the last hidden state (language model, distillation), losses on the routing (mutual
information, load balance, locality), and the loss on the residual stream.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import global_mean

TINY = 1e-8
IDLE = 0.1
"""Windows in which less than a tenth of an expert is active say nothing of locality, and their gradient has no bound."""

# ---- Losses on the last hidden state --------------------------------------------------------------------------------


class HeadLoss(NamedTuple):
    loss: Tensor
    """lm_weight · lm + kl_weight · kl: what carries the gradient."""
    lm: Tensor
    """-log p(next token)"""
    kl: Tensor
    """KL(teacher ‖ student) over the whole vocabulary."""
    kl_X: Tensor
    """The same, token by token, to see which kind of sequence it comes from."""


class Teacher(NamedTuple):
    """A teacher's last normed hidden state and its head; its logits are formed chunk by chunk."""

    x_BTD: Tensor
    head_VD: Tensor


def head_chunk(
    logits_CV: Tensor, target_C: Tensor, teacher_CV: Tensor | None, lm_weight: float, kl_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over C tokens of lm, every token's kl, and the gradient of the weighted sum of both with respect to the logits.

    d lm / d logits = p - onehot(target);  d kl / d logits = p - p_teacher
    """
    dtype = torch.promote_types(logits_CV.dtype, torch.float32)
    log_p_CV = F.log_softmax(logits_CV.to(dtype), -1)
    p_CV = log_p_CV.exp()
    lm = -log_p_CV.gather(-1, target_C[:, None]).sum()
    # As a comparison, not a scatter: all of it is then one kernel when compiled.
    is_target_CV = torch.arange(p_CV.shape[-1], device=p_CV.device) == target_C[:, None]
    gradient_CV = lm_weight * (p_CV - is_target_CV.to(dtype))
    if teacher_CV is None:
        return lm, lm.new_zeros(len(target_C)), gradient_CV.to(logits_CV.dtype)
    log_t_CV = F.log_softmax(teacher_CV.to(dtype), -1)
    t_CV = log_t_CV.exp()
    kl_C = (t_CV * (log_t_CV - log_p_CV)).sum(-1)
    return lm, kl_C, (gradient_CV + kl_weight * (p_CV - t_CV)).to(logits_CV.dtype)


class _ChunkedHead(torch.autograd.Function):
    """The gradient is formed chunk by chunk in the forward, so that logits [B · T, V] never exist as a whole."""

    @staticmethod
    def forward(ctx, x_XD, head_VD, target_X, teacher_XD, teacher_VD, lm_weight, kl_weight, chunk, chunk_loss):
        head = head_VD.to(x_XD.dtype)
        x_gradient = torch.empty_like(x_XD)
        # A frozen head needs none, and saves a third of the work.
        head_gradient = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        lm = torch.zeros((), device=x_XD.device, dtype=torch.promote_types(x_XD.dtype, torch.float32))
        kl_X = lm.new_empty(len(x_XD))
        for rows in torch.arange(len(x_XD)).split(chunk):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            teacher = None if teacher_XD is None else F.linear(teacher_XD[rows], teacher_VD)
            chunk_lm, kl_X[rows], gradient = chunk_loss(
                F.linear(x_XD[rows], head), target_X[rows], teacher, lm_weight, kl_weight
            )
            lm = lm + chunk_lm
            x_gradient[rows] = gradient @ head
            if head_gradient is not None:
                head_gradient += gradient.T @ x_XD[rows]
        tokens = len(x_XD)
        ctx.save_for_backward(x_gradient, head_gradient)
        ctx.tokens = tokens
        lm, kl = lm / tokens, kl_X.mean()
        loss = lm_weight * lm + kl_weight * kl
        ctx.mark_non_differentiable(lm, kl, kl_X)
        return loss, lm, kl, kl_X

    @staticmethod
    def backward(ctx, upstream, _lm, _kl, _kl_X):
        x_gradient, head_gradient = ctx.saved_tensors
        scale = upstream / ctx.tokens
        head_gradient = None if head_gradient is None else head_gradient * scale
        return x_gradient * scale.to(x_gradient.dtype), head_gradient, *[None] * 7


def head_loss(
    x_BTD: Tensor,
    head_VD: Tensor,
    target_BT: Tensor,
    teacher: Teacher | None = None,
    *,
    lm_weight: float,
    kl_weight: float,
    chunk: int = 8192,
    chunk_loss: Callable = head_chunk,
) -> HeadLoss:
    """Language-model loss and distillation from one pass over the vocabulary.

    chunk: tokens whose logits exist at a time
    chunk_loss: `head_chunk`, possibly compiled
    """
    x_XD = x_BTD.flatten(0, 1)
    teacher_XD, teacher_VD = (None, None) if teacher is None else (teacher.x_BTD.flatten(0, 1), teacher.head_VD)
    parts = _ChunkedHead.apply(
        x_XD, head_VD, target_BT.flatten(), teacher_XD, teacher_VD, lm_weight, kl_weight, chunk, chunk_loss
    )
    return HeadLoss(*parts)


# ---- Losses on the routing ------------------------------------------------------------------------------------------


def routing_means(z_XBTN: Tensor) -> tuple[Tensor, Tensor]:
    """The means over tokens of p(e) and of H(e|x): [X, N] and [X]."""
    log_p_XBTN = F.log_softmax(z_XBTN, -1)
    p_XBTN = log_p_XBTN.exp()
    return p_XBTN.mean((-3, -2)), -(p_XBTN * log_p_XBTN).sum(-1).mean((-2, -1))


def mutual_information(z_XBTN: Tensor, means: Callable = routing_means) -> Tensor:
    """L_MI = -H(e) + mean over x of H(e|x), p(e) the mean of p over the tokens of all processes (arXiv 2404.05567, eq. 4-6).

    Within [-ln N, 0]; lowest where each token is sure of its expert and all experts are used alike. X: layers, or nothing.
    means: `routing_means`, possibly compiled
    """
    p_XN, conditional_X = means(z_XBTN)
    p_XN = global_mean(p_XN)
    return (p_XN * p_XN.clamp(min=TINY).log()).sum(-1) + conditional_X


def switch_balance(z_BTN: Tensor, g_BTN: Tensor) -> Tensor:
    """N · Σ_i f_i · P_i: f_i the share of routings that went to expert i, P_i its mean probability (arXiv 2101.03961, eq. 4).
    1 when balanced."""
    f_N = global_mean((g_BTN > 0).float().mean((0, 1)))
    p_N = global_mean(F.softmax(z_BTN, -1).mean((0, 1)))
    return z_BTN.shape[-1] * (f_N / f_N.sum() * p_N).sum()


def windowed_entropy(g_XTN: Tensor, window: int) -> Tensor:
    """Locality: the entropy of the mean gate over `window` consecutive tokens. Low when neighbouring tokens share experts,
    which small caches reward; the share control keeps it from being low by using fewer.

    g_XTN: X, any dimensions: layers, sequences
    """
    u_XWN = g_XTN.unflatten(-2, (-1, window)).mean(-2)
    active_XW1 = u_XWN.sum(-1, keepdim=True)
    q_XWN = u_XWN / active_XW1.clamp(min=IDLE)
    entropy_XW = -(q_XWN * q_XWN.clamp(min=TINY).log()).sum(-1)
    return torch.where(active_XW1[..., 0] > IDLE, entropy_XW, 0.0).mean()


# ---- Loss on the residual stream ------------------------------------------------------------------------------------


def relative_error(student_BTD: Tensor, teacher_BTD: Tensor, limit: float = 10.0) -> Tensor:
    """‖student - teacher‖² / ‖teacher‖², mean over tokens; one token counts for at most `limit`."""
    teacher = teacher_BTD.float()
    error_BT = (student_BTD.float() - teacher).square().sum(-1)
    return (error_BT / (teacher.square().sum(-1) + 1e-6)).clamp(max=limit).mean()


def residual_error(student: list[Tensor], teacher: list[Tensor], error: Callable = relative_error) -> Tensor:
    """Mean over layers of the relative error of the residual stream. error: `relative_error`, possibly compiled."""
    return torch.stack([error(s, t) for s, t in zip(student, teacher, strict=True)]).mean()
