"""A DS-MoE language model in PyTorch, written from the formulas in docs/pack-format.md and engine/src/model/config.ts.

It shares nothing with the TypeScript: attention without a cache, rotations as complex numbers, and an FFN that is never
cut into experts: as in training, all hidden units are computed and those of expert e are multiplied by g_e. In float64,
so that what the tests compare with carries no rounding of its own.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


class DsMoe:
    def __init__(self, directory: Path):
        """Loads a checkpoint directory (docs/pack-format.md): config.json and model.safetensors."""
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = {
            name: tensor.double() for name, tensor in load_file(directory / "model.safetensors").items()
        }

    def logits(self, ids: list[int], last: bool = False) -> torch.Tensor:
        """Logits after every token [T, vocab], or after the last one only [1, vocab]."""
        config, w = self.config, self.weights
        x = w["model.embed_tokens.weight"][ids]
        seen = None  # the FFN input of the layer before
        for i in range(config["num_hidden_layers"]):
            layer = {
                name.removeprefix(f"model.layers.{i}."): tensor
                for name, tensor in w.items()
                if name.startswith(f"model.layers.{i}.")
            }
            x = x + self.attention(layer, self.norm(x, layer["input_layernorm.weight"]))
            h = self.norm(x, layer["post_attention_layernorm.weight"])
            look_ahead = config["gate"]["source"] == "previous" and seen is not None
            x = x + self.ffn(layer, h, self.gate(layer, seen if look_ahead else h))
            seen = h
        x = self.norm(x[-1:] if last else x, w["model.norm.weight"])
        head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
        return x @ w[head].T

    def norm(self, x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def attention(self, layer, h):
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        tokens = h.shape[0]
        # Query head n reads key-value head n // (heads / kv_heads).
        q = self.rotate((h @ layer["self_attn.q_proj.weight"].T).view(tokens, kv_heads, heads // kv_heads, -1))
        k = self.rotate((h @ layer["self_attn.k_proj.weight"].T).view(tokens, kv_heads, 1, -1)).squeeze(2)
        v = (h @ layer["self_attn.v_proj.weight"].T).view(tokens, kv_heads, -1)
        scores = torch.einsum("tkgd,skd->kgts", q, k) / q.shape[-1] ** 0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        out = torch.einsum("kgts,skd->tkgd", weights, v).reshape(tokens, -1)
        return out @ layer["self_attn.o_proj.weight"].T

    def rotate(self, x):
        """x [T, ..., head_dim]: the two halves of a head are real and imaginary parts, turned by position · frequency."""
        frequencies = self.weights["rope.inv_freq"]
        angles = torch.outer(torch.arange(x.shape[0], dtype=torch.float64), frequencies)
        angles = angles.view(x.shape[0], *[1] * (x.dim() - 2), -1)
        turned = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], -1) * self.config.get("rope_scale", 1)

    def gate(self, layer, source):
        """Weights of the experts [T, experts]."""
        gate, experts = self.config["gate"], self.config["num_experts"]
        kind, selection = gate["kind"], gate["selection"]
        if kind == "all":
            return torch.ones(source.shape[0], experts, dtype=source.dtype)
        z = source @ layer["mlp.router.weight"].T + layer["mlp.router.bias"]
        if kind == "clamped_linear":
            return z.clamp(0, 1)
        p = z.softmax(-1)
        if selection["by"] == "top_k":
            chosen = torch.zeros_like(p).scatter(-1, z.topk(selection["k"]).indices, 1.0)
        else:
            chosen = (experts * p > selection["eps"]).to(p.dtype)
        g = p * chosen
        return g / g.sum(-1, keepdim=True) if kind == "softmax_renormalised" else g

    def ffn(self, layer, h, g):
        shared, units = self.config.get("shared_units", 0), self.config["expert_units"]
        scale = torch.cat([torch.ones(h.shape[0], shared, dtype=h.dtype), g.repeat_interleave(units, -1)], -1)
        hidden = torch.nn.functional.silu(h @ layer["mlp.gate_proj.weight"].T) * (h @ layer["mlp.up_proj.weight"].T)
        return (hidden * scale) @ layer["mlp.down_proj.weight"].T
