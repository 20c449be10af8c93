"""A Llama-shaped decoder whose FFN (and, if asked, attention) is a mixture of densely trained experts.

In reading order: attention, FFN, block, model. Every expert sees every token in training: an expert is a slice of
an ordinary FFN, and the gate's weight multiplies that slice's hidden units (arXiv 2404.05567, section 3). The sparse
forward computes only what was routed; it is for evaluation and is tested against the dense one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gate import Gate, Routed
from .model_config import ModelConfig
from .parts import Linear, RmsNorm, rope_frequencies, rotate

# ---- Attention ------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Grouped-query attention. With attention experts, expert n owns query head k·N + n of every key/value head k and the
    matching columns of the output projection; the gate's weight multiplies its heads' outputs."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv_proj = Linear(config.hidden, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden)
        routing = config.routing
        self.gate = None
        if routing.attention_experts > 1:
            self.gate = Gate(routing.gate, config.hidden, routing.attention_experts, routing.router_units, 0, config.shares)

    def forward(self, h_BTD: Tensor, rope: tuple[Tensor, Tensor], level_B: Tensor) -> tuple[Tensor, Routed | None]:
        # Rotated before they are transposed: all of the backward up to the projection is then one kernel.
        q_BTHE, k_BTKE, v_BTKE = (
            self.qkv_proj(h_BTD).unflatten(-1, (-1, self.head_dim)).split([self.heads, self.kv_heads, self.kv_heads], 2)
        )
        o_BHTE = F.scaled_dot_product_attention(
            rotate(q_BTHE, *rope).transpose(1, 2),
            rotate(k_BTKE, *rope).transpose(1, 2),
            v_BTKE.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
        o_BTHE = o_BHTE.transpose(1, 2)
        routed = None
        if self.gate is not None:
            routed = self.gate(h_BTD, level_B)
            o_BTHE = o_BTHE * routed.g_BTN.to(o_BTHE.dtype).repeat(1, 1, self.kv_heads)[..., None]
        return self.o_proj(o_BTHE.flatten(-2)), routed


# ---- FFN ------------------------------------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """FFN(h) = shared(h) + Σ_n g_n · E_n(h). Hidden units stand in the order shared, expert 0, expert 1, …"""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kind = config.ffn
        self.units, self.shared_units = config.expert_units, config.routing.shared_units
        self.experts = config.routing.experts
        if config.ffn == "swiglu":
            self.gate_up_proj = Linear(config.hidden, 2 * config.ffn_units)
        else:
            self.up_proj = Linear(config.hidden, config.ffn_units)
        self.down_proj = Linear(config.ffn_units, config.hidden)

    def hidden_units(self, h_BTD: Tensor) -> Tensor:
        """What the down projection reads before any gate, [B, T, F]."""
        if self.kind == "swiglu":
            gate_BTF, up_BTF = self.gate_up_proj.halves(h_BTD)
            return F.silu(gate_BTF) * up_BTF
        return F.gelu(self.up_proj(h_BTD), approximate="tanh")

    def forward(self, h_BTD: Tensor, g_BTN: Tensor | None) -> Tensor:
        """g_BTN None: every expert counts once, an ordinary dense FFN."""
        m_BTF = self.hidden_units(h_BTD)
        if g_BTN is not None:
            m_BTF = self._gated(m_BTF, g_BTN.to(m_BTF.dtype))
        return self.down_proj(m_BTF)

    def _gated(self, m_BTF: Tensor, g_BTN: Tensor) -> Tensor:
        """Every hidden unit times its gate, 1 for shared ones. One product over equal groups of units: apart and put together
        again, shared and routed units would be written and read once more, forward and backward."""
        group = math.gcd(self.shared_units, self.units)
        g_BTG = g_BTN[..., None].expand(*g_BTN.shape, self.units // group).flatten(-2)
        g_BTG = F.pad(g_BTG, (self.shared_units // group, 0), value=1.0)
        return (m_BTF.unflatten(-1, (-1, group)) * g_BTG[..., None]).flatten(-2)

    @torch.no_grad()
    def sparse(self, h_BTD: Tensor, g_BTN: Tensor) -> Tensor:
        """The same sum, each expert computed only for the tokens that routed it."""
        h_XD, g_XN = h_BTD.flatten(0, 1), g_BTN.flatten(0, 1)
        y_XD = torch.zeros_like(h_XD)
        if self.shared_units:
            y_XD += self._slice(h_XD, 0, self.shared_units)
        for n in range(self.experts):
            (tokens,) = g_XN[:, n].nonzero(as_tuple=True)
            start = self.shared_units + n * self.units
            y = self._slice(h_XD[tokens], start, start + self.units, g_XN[tokens, n, None].to(h_XD.dtype))
            y_XD.index_add_(0, tokens, y)
        return y_XD.view_as(h_BTD)

    def _slice(self, h_XD: Tensor, start: int, end: int, g_X1: Tensor | None = None) -> Tensor:
        """Units start … end for some tokens, through their own rows and columns only."""
        if self.kind == "swiglu":
            gate_proj, up_proj = self.gate_up_proj.weight.to(h_XD.dtype).chunk(2)
            m = F.silu(F.linear(h_XD, gate_proj[start:end])) * F.linear(h_XD, up_proj[start:end])
        else:
            m = F.gelu(F.linear(h_XD, self.up_proj.weight[start:end].to(h_XD.dtype)), approximate="tanh")
        m = m if g_X1 is None else m * g_X1
        return F.linear(m, self.down_proj.weight[:, start:end].to(h_XD.dtype))


# ---- Block and model ------------------------------------------------------------------------------------------------


class BlockOutput(NamedTuple):
    x_BTD: Tensor
    h_BTD: Tensor
    """The normed FFN input: the next layer's gate may read it."""
    ffn: Routed | None
    attention: Routed | None


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        routing = config.routing
        self.reads_previous = routing.source == "previous" and layer > 0
        # A clamped linear gate's router learns, its source does not (gate.py). An output that could have a gradient gets
        # one from torch.compile, of zeros, to be written and read in every layer.
        self.source_learns = routing.source == "previous" and "softmax" in routing.gate
        self.sparse = False
        self.input_layernorm = RmsNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden, config.norm_eps)
        self.mlp = FeedForward(config)
        self.gate = None
        if routing.gate != "all":
            self.gate = Gate(routing.gate, config.hidden, routing.experts, routing.router_units, routing.top_k, config.shares)

    def forward(
        self,
        x_BTD: Tensor,
        previous_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        level_B: Tensor,
        available_BN: Tensor | None,
    ) -> BlockOutput:
        """previous_BTD: the layer before's normed FFN input."""
        a_BTD, attention = self.self_attn(self.input_layernorm(x_BTD), rope, level_B)
        x_BTD = x_BTD + a_BTD
        h_BTD = self.post_attention_layernorm(x_BTD)
        routed = None
        if self.gate is not None:
            routed = self.gate(previous_BTD if self.reads_previous else h_BTD, level_B, available_BN)
        if self.sparse and routed is not None:
            y_BTD = self.mlp.sparse(h_BTD, routed.g_BTN)
        else:
            y_BTD = self.mlp(h_BTD, None if routed is None else routed.g_BTN)
        return BlockOutput(x_BTD + y_BTD, h_BTD if self.source_learns else h_BTD.detach(), routed, attention)


class Output(NamedTuple):
    head: object
    """What the head function made of the last hidden state."""
    ffn: list[Routed]
    """One per layer; empty for a dense model."""
    attention: list[Routed]
    residual: list[Tensor]
    """The residual stream after each layer, if asked for."""
    ffn_input: list[Tensor]
    """The normed FFN inputs, if asked for."""


Head = Callable[[Tensor, Tensor], object]
"""(x_BTD, head_VD) → anything. It runs within the model's forward, where a sharded head is whole."""


def logits(x_BTD: Tensor, head_VD: Tensor) -> Tensor:
    """The head that makes all logits at once; training uses objectives.py, which never does."""
    return F.linear(x_BTD, head_VD.to(x_BTD.dtype))


class Model(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RmsNorm(config.hidden, config.norm_eps)
        self.lm_head = None if config.tied_head else Linear(config.hidden, config.vocab)
        self.register_buffer("inv_freq", rope_frequencies(config.head_dim, config.rope_theta))
        self.dtype = torch.float32

    def forward(
        self,
        ids_BT: Tensor,
        head: Head = logits,
        *,
        level_B: Tensor | None = None,
        available_LBN: Tensor | None = None,
        keep: bool = False,
    ) -> Output:
        """
        level_B: share level of each sequence, an index into config.shares; by default the default share
        available_LBN: experts that may be used (see Gate); by default all
        keep: also return the residual stream and the FFN inputs of every layer
        """
        if level_B is None:
            default = self.config.shares.index(self.config.default_share)
            level_B = ids_BT.new_full(ids_BT.shape[:1], default)
        rope = self.rope(ids_BT.shape[1])
        x_BTD = self.embed_tokens(ids_BT).to(self.dtype)
        h_BTD = x_BTD
        output = Output(None, [], [], [], [])
        for layer, block in enumerate(self.layers):
            available_BN = None if available_LBN is None else available_LBN[layer]
            x_BTD, h_BTD, ffn, attention = block(x_BTD, h_BTD, rope, level_B, available_BN)
            output.ffn.extend([] if ffn is None else [ffn])
            output.attention.extend([] if attention is None else [attention])
            if keep:
                output.residual.append(x_BTD)
                output.ffn_input.append(h_BTD)
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return output._replace(head=head(self.norm(x_BTD), weight))

    def rope(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of all positions, [T, E] each."""
        angle_TE = torch.outer(torch.arange(tokens, device=self.inv_freq.device).float(), self.inv_freq).repeat(1, 2)
        scale = self.config.rope_scale
        return (angle_TE.cos() * scale).to(self.dtype), (angle_TE.sin() * scale).to(self.dtype)

    # ---- switches ----

    def set_quantised(self, on: bool) -> None:
        """Rounds every matrix of attention and FFN to the pack's q4 grid in each forward. The embedding and the head are
        packed with 8 bits, whose error is a hundred times smaller, and stay as they are."""
        for block in self.layers:
            for module in block.modules():
                if isinstance(module, Linear):
                    module.quantised = on

    def set_sparse(self, on: bool) -> None:
        """Computes only routed experts (evaluation only)."""
        for block in self.layers:
            block.sparse = on

    def gates(self) -> list[Gate]:
        """The FFN gates, one per layer; empty for a dense model."""
        return [block.gate for block in self.layers if block.gate is not None]

    def attention_gates(self) -> list[Gate]:
        return [block.self_attn.gate for block in self.layers if block.self_attn.gate is not None]


@torch.no_grad()
def initialise(model: Model, seed: int, std: float = 0.02) -> None:
    """Normal weights; projections that write to the residual stream are smaller by sqrt(2 · layers), as in GPT-2."""
    generator = torch.Generator().manual_seed(seed)
    small = std / (2 * model.config.layers) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = small if name.endswith(("o_proj.weight", "down_proj.weight")) else std
            parameter.copy_(torch.empty(parameter.shape).normal_(0, scale, generator=generator))


def matmul_parameters(model: Model) -> int:
    """Weights that every token multiplies, the head included and the embedding lookup not: the N of 6·N FLOPs a token."""
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return matrices if model.lm_head is None else matrices - model.embed_tokens.weight.numel()
