"""What one training step computes: the modules that DDP and FSDP2 wrap. Everything that needs whole weights (the head, the
losses) happens within their forward.

- `EndToEnd`: the language model with all its losses, against text or a teacher.
- `Layerwise`: upcycling, stage 1. Every sparse FFN imitates the dense one on the teacher's own inputs, so that no layer has to
  make up for the errors of those below.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConfigError, Objectives
from .distributed import global_mean
from .gate import Routed
from .model import Model, matmul_parameters
from .model_config import ModelConfig
from .objectives import (
    Teacher,
    head_chunk,
    head_loss,
    mutual_information,
    relative_error,
    residual_error,
    routing_means,
    switch_balance,
    windowed_entropy,
)
from .share import MutualInformationWeights


class Batch(NamedTuple):
    ids_BT: Tensor
    target_BT: Tensor
    level_B: Tensor
    """Share level of each sequence."""
    available_LBN: Tensor | None


class StepOutput(NamedTuple):
    loss: Tensor
    parts: dict[str, Tensor]
    """Every loss by name, unweighted, detached."""
    ffn: list[Routed]
    kl_B: Tensor | None = None
    """Of every sequence, where there is a teacher: what each share costs."""


def _check_alike(teacher: ModelConfig, student: ModelConfig, objectives: Objectives) -> None:
    """The KL compares token with token, the residual loss layer with layer."""
    if teacher.vocab != student.vocab:
        raise ConfigError(
            f"the teacher knows {teacher.vocab} tokens and the student {student.vocab}: both need the same tokenizer"
        )
    if objectives.residual and (teacher.layers, teacher.hidden) != (student.layers, student.hidden):
        raise ConfigError(
            f"the teacher has {teacher.layers} layers of {teacher.hidden} and the student {student.layers} of "
            f"{student.hidden}: objectives.residual compares layer with layer, set it to 0"
        )


class EndToEnd(nn.Module):
    def __init__(self, model: Model, teacher: Model | None, objectives: Objectives, alpha: MutualInformationWeights | None):
        super().__init__()
        if teacher is not None:
            _check_alike(teacher.config, model.config, objectives)
        self.model = model
        # Not submodules: a wrapper must neither synchronise nor shard them.
        self._outside = (teacher, alpha)
        self.objectives = objectives
        self.chunk_loss, self.relative_error = head_chunk, relative_error
        self.routing_means, self.windowed_entropy = routing_means, windowed_entropy

    @property
    def teacher(self) -> Model | None:
        return self._outside[0]

    @property
    def alpha(self) -> MutualInformationWeights | None:
        return self._outside[1]

    def forward(self, batch: Batch, progress: float) -> StepOutput:
        """progress: from 0 to 1 through the stage."""
        weights = self.objectives
        teacher, teacher_residual = self._teach(batch)

        def head(x_BTD: Tensor, head_VD: Tensor):
            return head_loss(
                x_BTD, head_VD, batch.target_BT, teacher, lm_weight=weights.lm, kl_weight=weights.kl,
                chunk=weights.chunk, chunk_loss=self.chunk_loss,
            )  # fmt: skip

        output = self.model(
            batch.ids_BT, head, level_B=batch.level_B, available_LBN=batch.available_LBN, keep=weights.residual > 0
        )
        loss, parts = output.head.loss, {"lm": output.head.lm}
        kl_B = None
        if weights.kl:
            parts["kl"] = output.head.kl
            kl_B = output.head.kl_X.view(batch.ids_BT.shape).mean(1)
        if weights.residual:
            parts["residual"] = residual_error(output.residual, teacher_residual, self.relative_error)
            loss = loss + weights.residual * (1 - progress if weights.residual_fades else 1) * parts["residual"]
        loss = loss + self._routing_losses(output.ffn, output.attention, parts)
        return StepOutput(loss, {name: value.detach() for name, value in parts.items()}, output.ffn, kl_B)

    @torch.no_grad()
    def _teach(self, batch: Batch) -> tuple[Teacher | None, list[Tensor]]:
        if self.teacher is None:
            return None, []
        output = self.teacher(batch.ids_BT, lambda x_BTD, head_VD: (x_BTD, head_VD), keep=self.objectives.residual > 0)
        x_BTD, head_VD = output.head
        return Teacher(x_BTD, head_VD.to(x_BTD.dtype)), output.residual

    def _routing_losses(self, ffn: list[Routed], attention: list[Routed], parts: dict[str, Tensor]) -> Tensor | float:
        weights, loss = self.objectives, 0.0
        if self.alpha is not None:
            mi_L = mutual_information(torch.stack([routed.z_BTN for routed in ffn]), self.routing_means)
            parts["mutual_information"] = mi_L.mean()
            loss = loss + (self.alpha.alpha_L * mi_L).sum()
        if weights.mutual_information_attention and attention:
            mi_L = mutual_information(torch.stack([routed.z_BTN for routed in attention]), self.routing_means)
            parts["mutual_information_attention"] = mi_L.mean()
            loss = loss + weights.mutual_information_attention * mi_L.sum()
        if weights.switch and ffn:
            parts["switch"] = torch.stack([switch_balance(*routed) for routed in ffn]).mean()
            loss = loss + weights.switch * parts["switch"]
        if weights.locality and ffn:
            parts["locality"] = self.windowed_entropy(_gates(ffn), weights.locality_window)
            loss = loss + weights.locality * parts["locality"]
        return loss

    @torch.no_grad()
    def after_step(self, output: StepOutput) -> None:
        """Steers α by the part of the scores above the paper's threshold, N · p > eps, over all processes."""
        if self.alpha is not None and self.alpha.target_L is not None:
            eps = self.objectives.steer_threshold
            share_L = [(r.z_BTN.shape[-1] * F.softmax(r.z_BTN, -1) > eps).float().mean() for r in output.ffn]
            self.alpha.steer(global_mean(torch.stack(share_L)))

    def flops_per_token(self) -> float:
        """6 per weight for the student's forward and backward, 2 for the teacher's forward; attention scores not counted."""
        teacher = 0 if self.teacher is None else 2 * matmul_parameters(self.teacher)
        return 6 * matmul_parameters(self.model) + teacher


class Layerwise(nn.Module):
    def __init__(self, model: Model, teacher: Model, objectives: Objectives):
        super().__init__()
        self.model = model
        self._outside = (teacher,)
        self.objectives = objectives
        self.layer_error = _layer_error
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp." in name or (".gate." in name and ".self_attn." not in name))

    @property
    def teacher(self) -> Model:
        return self._outside[0]

    def forward(self, batch: Batch, progress: float) -> StepOutput:
        with torch.no_grad():
            h_LBTD = self.teacher(batch.ids_BT, lambda *_: None, keep=True).ffn_input
        errors, ffn = [], []
        for layer, (block, dense) in enumerate(zip(self.model.layers, self.teacher.layers, strict=True)):
            available_BN = None if batch.available_LBN is None else batch.available_LBN[layer]
            source_BTD = h_LBTD[max(layer - 1, 0)] if block.reads_previous else h_LBTD[layer]
            error, routed = self.layer_error(block, dense, h_LBTD[layer], source_BTD, batch.level_B, available_BN)
            errors.append(error)
            ffn.extend([] if routed is None else [routed])
        parts = {"ffn_error": torch.stack(errors).mean()}
        loss = torch.stack(errors).sum()
        if self.objectives.locality and ffn:
            parts["locality"] = windowed_entropy(_gates(ffn), self.objectives.locality_window)
            loss = loss + self.objectives.locality * parts["locality"]
        return StepOutput(loss, {name: value.detach() for name, value in parts.items()}, ffn)

    def after_step(self, output: StepOutput) -> None:
        pass

    def flops_per_token(self) -> float:
        ffn = sum(p.numel() for p in self.model.parameters() if p.requires_grad and p.ndim == 2)
        return 6 * ffn + 2 * matmul_parameters(self.teacher) + 2 * ffn


def _layer_error(block, dense, h_BTD, source_BTD, level_B, available_BN) -> tuple[Tensor, Routed | None]:
    routed = None if block.gate is None else block.gate(source_BTD, level_B, available_BN)
    student = block.mlp(h_BTD, None if routed is None else routed.g_BTN)
    with torch.no_grad():
        target = dense.mlp(h_BTD, None)
    return relative_error(student, target), routed


def _gates(ffn: list[Routed]) -> Tensor:
    """[L, B, T, N]"""
    return torch.stack([routed.g_BTN for routed in ffn])
