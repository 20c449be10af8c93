"""Checkpoint directories: config.json, model.safetensors, tokenizer.json and a chat template, as docs/pack-format.md states
them. The only file that knows the tensor names of others.

What the trainer keeps in a form of its own is folded away here: fused projections are split, a router's centre, mean bias and
default threshold become its bias, and the N of a softmax gate's N·p goes into the down projection.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import ConfigError
from .files import write_json, write_whole
from .gate import FULL_OFFSET
from .model import Model
from .model_config import ModelConfig, Routing
from .parts import rope_frequencies
from .quantise import q4

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
State = dict[str, Tensor]

# ---- Writing --------------------------------------------------------------------------------------------------------


def save_checkpoint(directory: Path, config: ModelConfig, state: State, text_home: Path, *, quantised: bool = False) -> None:
    """
    state: the model's whole state_dict
    text_home: a directory with the tokenizer and the chat template
    quantised: write the matrices as the pack's 4-bit grid rounds them
    """
    tensors = {name: tensor.contiguous() for name, tensor in to_tensors(config, state, quantised).items()}
    write_whole(directory / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    for name in TEXT_FILES:
        if (text_home / name).is_file():
            write_whole(directory / name, lambda path, name=name: shutil.copyfile(text_home / name, path))
    write_json(directory / "config.json", to_json(config, state))


def to_tensors(config: ModelConfig, state: State, quantised: bool) -> State:
    """The model's state under Llama's names."""
    round_ = (lambda weight: q4(weight).dequantise()) if quantised else (lambda weight: weight)
    float_state = {name: tensor.detach().float().cpu() for name, tensor in state.items()}
    out = {
        "rope.inv_freq": float_state["inv_freq"],
        "model.embed_tokens.weight": float_state["embed_tokens.weight"],
        "model.norm.weight": float_state["norm.weight"],
    }
    if not config.tied_head:
        out["lm_head.weight"] = float_state["lm_head.weight"]
    heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
    for layer in range(config.layers):
        part = {
            name.removeprefix(f"layers.{layer}."): tensor
            for name, tensor in float_state.items()
            if name.startswith(f"layers.{layer}.")
        }
        to = f"model.layers.{layer}."
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            out[to + norm] = part[norm]
        rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        for name, weight in zip("qkv", round_(part["self_attn.qkv_proj.weight"]).split(rows), strict=True):
            out[f"{to}self_attn.{name}_proj.weight"] = weight
        o_proj = round_(part["self_attn.o_proj.weight"])
        out[to + "self_attn.o_proj.weight"] = o_proj * config.routing.attention_experts
        if config.ffn == "swiglu":
            gate_up = round_(part["mlp.gate_up_proj.weight"])
            out[to + "mlp.gate_proj.weight"], out[to + "mlp.up_proj.weight"] = gate_up.chunk(2)
        else:
            out[to + "mlp.up_proj.weight"] = round_(part["mlp.up_proj.weight"])
        down = _scale_experts(config, part["mlp.down_proj.weight"], gate_scale(config.routing))
        out[to + "mlp.down_proj.weight"] = round_(down)
        if config.routing.gate != "all":
            default = part["gate.threshold_S"][config.shares.index(config.default_share)].double()
            offset = default if config.routing.gate == "clamped_linear" else None
            _router_to(out, to + "mlp.router.", part, "gate.router.", offset)
        if config.routing.attention_experts > 1:
            _router_to(out, to + "self_attn.router.", part, "self_attn.gate.router.", None)
    return out


def gate_scale(routing: Routing) -> int:
    """What the model's softmax gate multiplies p with (gate.py), and the served one does not."""
    return routing.experts if routing.gate == "softmax" else 1


def _scale_experts(config: ModelConfig, down_DF: Tensor, scale: float) -> Tensor:
    """The routed columns of a down projection times `scale`."""
    shared = config.routing.shared_units
    return down_DF if scale == 1 else torch.cat([down_DF[:, :shared], down_DF[:, shared:] * scale], 1)


def _router_to(out: State, to: str, part: State, name: str, offset: Tensor | None) -> None:
    """z = W (x - centre) + b - mean(b) + offset, with all constants in the bias (of the first of two layers: the centre).
    No offset: a softmax gate, for which only differences count."""
    weight, bias = part[name + "weight"], part[name + "bias"].double()
    centre = part[name + "centre_D"].double()
    bias = bias - bias.mean()
    if name + "hidden.weight" in part:
        hidden = part[name + "hidden.weight"]
        out[to + "hidden.weight"] = hidden
        out[to + "hidden.bias"] = (part[name + "hidden.bias"].double() - hidden.double() @ centre).float()
    else:
        bias = bias - weight.double() @ centre
    out[to + "weight"] = weight
    out[to + "bias"] = (bias - bias.mean() if offset is None else bias + offset).float()


def to_json(config: ModelConfig, state: State) -> dict:
    """config.json."""
    routing = config.routing
    fields = {
        "architectures": ["DsMoeForCausalLM"],
        "model_type": "ds_moe",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn_units,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu" if config.ffn == "swiglu" else "gelu_pytorch_tanh",
        "tie_word_embeddings": config.tied_head,
        "rope_theta": config.rope_theta,
        "rope_scale": config.rope_scale,
        "eos_token_id": list(config.eos_tokens),
        "num_experts": routing.experts,
        "expert_units": config.expert_units,
        "shared_units": routing.shared_units,
        "gate": _gate_to_json(config, state),
    }
    if config.bos_token is not None:
        fields["bos_token_id"] = config.bos_token
    # What the pack format does not know is stated only where it is used, so that a reader refuses rather than ignores it.
    if routing.router_units:
        fields["router_units"] = routing.router_units
    if routing.attention_experts > 1:
        fields["attention_experts"] = routing.attention_experts
    return fields


def _gate_to_json(config: ModelConfig, state: State) -> dict:
    kind = config.routing.gate
    gate: dict = {"kind": kind, "source": config.routing.source}
    if kind == "all":
        return {**gate, "selection": {"by": "all"}}
    if config.routing.top_k:
        return {**gate, "selection": {"by": "top_k", "k": config.routing.top_k}}
    threshold_LS = torch.stack([state[f"layers.{layer}.gate.threshold_S"] for layer in range(config.layers)]).double().cpu()
    default_L = threshold_LS[:, config.shares.index(config.default_share)]
    if kind == "clamped_linear":
        gate["selection"] = {"by": "positive"}
        # The default's threshold is in the bias; share 1 opens every gate.
        threshold_LS = threshold_LS - default_L[:, None]
        if 1.0 in config.shares:
            threshold_LS[:, config.shares.index(1.0)] = FULL_OFFSET
    else:
        # eps must be positive; a threshold never above 1/N's share of N·p leaves at least one expert.
        gate["selection"] = {"by": "threshold", "eps": max(default_L.mean().item(), 1e-6)}
    gate["offsets"] = {f"{share:g}": threshold_LS[:, s].tolist() for s, share in enumerate(config.shares)}
    return gate


# ---- Reading --------------------------------------------------------------------------------------------------------


def load_checkpoint(directory: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Reads a checkpoint directory, Llama or DS-MoE. `dtype` is that of activations; weights stay float32.

    Raises ConfigError for what is missing or cannot be trained on.
    """
    directory = Path(directory)
    try:
        fields = json.loads((directory / "config.json").read_text())
    except OSError as error:
        raise ConfigError(f"{directory} is no checkpoint directory: cannot read its config.json") from error
    except ValueError as error:
        raise ConfigError(f"{directory}/config.json is not JSON: {error}") from error
    tensors = _read_tensors(directory)
    try:
        config = from_json(fields, directory, has_frequencies="rope.inv_freq" in tensors)
        model = Model(config)
        model.load_state_dict(from_tensors(config, fields, tensors))
    except KeyError as error:
        raise ConfigError(f"{directory}/config.json has no {error}") from error
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        # Wrong types, numbers that contradict each other, tensors of other shapes.
        raise ConfigError(f"{directory} cannot be read: {error}") from error
    model.dtype = dtype
    return model


def _read_tensors(directory: Path) -> State:
    tensors: State = {}
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise ConfigError(f"{directory} has no model.safetensors")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name).float() for name in list(opened.keys())})
        except SafetensorError as error:
            raise ConfigError(f"{file} is not a safetensors file: {error}") from error
    return tensors


def from_json(fields: dict, directory: Path, has_frequencies: bool) -> ModelConfig:
    if fields["model_type"] not in ("llama", "ds_moe"):
        raise ConfigError(f"{directory} is a {fields['model_type']} model: only Llama-shaped checkpoints can be trained on")
    scaled = fields.get("rope_scaling") or (fields.get("rope_parameters") or {}).get("rope_type", "default") != "default"
    if scaled and not has_frequencies:
        raise ConfigError(f"{directory} scales its RoPE frequencies: pack it, and train on what `weights-tool unpack` gives")
    heads = fields["num_attention_heads"]
    gate = fields.get("gate", {"kind": "all", "source": "own", "selection": {"by": "all"}})
    shares = tuple(sorted(float(share) for share in gate.get("offsets", {"1": []})))
    eos = fields.get("eos_token_id")
    return ModelConfig(
        vocab=fields["vocab_size"],
        hidden=fields["hidden_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        ffn_units=fields["intermediate_size"],
        context=fields["max_position_embeddings"],
        ffn="swiglu" if fields.get("hidden_act", "silu") == "silu" else "gelu",
        rope_theta=float((fields.get("rope_parameters") or fields).get("rope_theta", 10_000)),
        rope_scale=float(fields.get("rope_scale", 1)),
        norm_eps=fields["rms_norm_eps"],
        tied_head=fields.get("tie_word_embeddings", False),
        bos_token=fields.get("bos_token_id"),
        eos_tokens=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        routing=Routing(
            experts=fields.get("num_experts", 1),
            shared_units=fields.get("shared_units", 0),
            gate=gate["kind"],
            source=gate["source"],
            router_units=fields.get("router_units", 0),
            top_k=gate["selection"].get("k", 0),
            attention_experts=fields.get("attention_experts", 1),
        ),
        shares=shares,
        default_share=_default_share(gate, shares),
    )


def _default_share(gate: dict, shares: tuple[float, ...]) -> float:
    """The share that the checkpoint has by itself: the one whose offsets are all 0, or nearest to its eps."""
    eps = gate["selection"].get("eps", 0.0)
    offsets = gate.get("offsets", {})
    return min(shares, key=lambda share: sum(abs(o - eps) for o in offsets.get(f"{share:g}", [])))


def from_tensors(config: ModelConfig, fields: dict, tensors: State) -> State:
    """The inverse of `to_tensors`."""

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise ConfigError(f"the checkpoint has no tensor {name}")
        return tensors[name]

    frequencies = tensors.get("rope.inv_freq", rope_frequencies(config.head_dim, config.rope_theta))
    state = {
        "inv_freq": frequencies,
        "embed_tokens.weight": take("model.embed_tokens.weight"),
        "norm.weight": take("model.norm.weight"),
    }
    if not config.tied_head:
        state["lm_head.weight"] = take("lm_head.weight")
    for layer in range(config.layers):
        of, to = f"model.layers.{layer}.", f"layers.{layer}."
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            state[to + norm] = take(of + norm)
        state[to + "self_attn.qkv_proj.weight"] = torch.cat([take(f"{of}self_attn.{n}_proj.weight") for n in "qkv"])
        o_proj = take(of + "self_attn.o_proj.weight")
        state[to + "self_attn.o_proj.weight"] = o_proj / config.routing.attention_experts
        if config.ffn == "swiglu":
            gate_up = torch.cat([take(of + "mlp.gate_proj.weight"), take(of + "mlp.up_proj.weight")])
            state[to + "mlp.gate_up_proj.weight"] = gate_up
        else:
            state[to + "mlp.up_proj.weight"] = take(of + "mlp.up_proj.weight")
        down = take(of + "mlp.down_proj.weight")
        state[to + "mlp.down_proj.weight"] = _scale_experts(config, down, 1 / gate_scale(config.routing))
        if config.routing.gate != "all":
            _router_from(state, to + "gate.router.", tensors, of + "mlp.router.")
            state[to + "gate.threshold_S"] = _thresholds(config, fields["gate"], layer, take(of + "mlp.router.bias"))
        if config.routing.attention_experts > 1:
            _router_from(state, to + "self_attn.gate.router.", tensors, of + "self_attn.router.")
            state[to + "self_attn.gate.threshold_S"] = torch.zeros(len(config.shares))
    return state


def _router_from(state: State, to: str, tensors: State, of: str) -> None:
    for name, tensor in tensors.items():
        if name.startswith(of):
            state[to + name.removeprefix(of)] = tensor
    inputs = state.get(to + "hidden.weight", state[to + "weight"])
    state[to + "centre_D"] = torch.zeros(inputs.shape[1])


def _thresholds(config: ModelConfig, gate: dict, layer: int, bias_N: Tensor) -> Tensor:
    """The router takes the mean out of its bias, so a clamped linear gate's threshold gets it back."""
    offsets = gate.get("offsets")
    if offsets is None:  # a single share, not known as a number
        row = torch.tensor([float(gate["selection"].get("eps", 0.0))])
    else:
        row = torch.tensor([offsets[f"{share:g}"][layer] for share in config.shares])
    return row + bias_N.mean() if config.routing.gate == "clamped_linear" else row
