"""What a model is, in numbers. The fields map one to one onto config.json (checkpoint.py) and so onto the pack's manifest."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GateKind = Literal["all", "softmax", "softmax_renormalised", "clamped_linear"]


class Strict(BaseModel):
    """A section of a configuration: immutable, and an unknown or mistyped field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Routing(Strict):
    """How a layer's FFN (and, with `attention_experts`, its attention) is cut into experts and who chooses among them."""

    experts: int = Field(default=1, ge=1)
    """Routed experts of a layer, N."""
    shared_units: int = Field(default=0, ge=0)
    """Hidden units of the expert that is always on."""
    gate: GateKind = "all"
    source: Literal["own", "previous"] = "own"
    """`previous`: the gate reads the layer before's normed FFN input, so that experts are known one layer early."""
    router_units: int = Field(default=0, ge=0)
    """0: a linear router. Otherwise Linear(hidden, router_units), GELU, Linear(router_units, experts); the paper's
    parameter counts imply 512. Only linear routers can be packed."""
    top_k: int = Field(default=0, ge=0)
    """0: experts are selected by threshold. Otherwise the k largest scores, as in a sparsely trained MoE (the baseline)."""
    attention_experts: int = Field(default=1, ge=1)
    """1: plain attention. Otherwise mixture of attention (arXiv 2404.05567, eq. 7-8): that many experts, each with one
    query head per key/value head; the key/value heads are shared. Cannot be packed yet."""

    @model_validator(mode="after")
    def _consistent(self) -> "Routing":
        if self.gate == "all" and (self.top_k or self.attention_experts > 1):
            raise ValueError("gate = 'all' has no router, so neither top_k nor attention_experts can be set")
        if self.gate == "clamped_linear" and self.top_k:
            raise ValueError("a clamped linear gate selects by its own zeros; top_k belongs to the softmax gates")
        if self.attention_experts > 1 and self.gate != "softmax":
            raise ValueError("attention experts need a softmax gate")
        if self.gate == "softmax_renormalised" and not self.top_k:
            raise ValueError("a renormalised softmax needs top_k")
        if self.top_k > self.experts:
            raise ValueError(f"top_k = {self.top_k} of {self.experts} experts")
        return self


class ModelConfig(Strict):
    vocab: int = Field(ge=1)
    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    ffn_units: int = Field(ge=1)
    """F: the width of the FFN, all experts together."""
    context: int = Field(ge=1)
    ffn: Literal["swiglu", "gelu"] = "swiglu"
    """`gelu`: the paper's two-matrix FFN (tanh approximation). Cannot be packed."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_scale: float = Field(default=1.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    tied_head: bool = True
    bos_token: int | None = None
    eos_tokens: tuple[int, ...] = ()
    routing: Routing = Routing()
    shares: tuple[float, ...] = (1.0,)
    """Active shares that the model serves, ascending; the gates keep one threshold per layer for each (share.py)."""
    default_share: float = 1.0

    @property
    def expert_units(self) -> int:
        return (self.ffn_units - self.routing.shared_units) // self.routing.experts

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        routed = self.ffn_units - self.routing.shared_units
        if routed <= 0 or routed % self.routing.experts:
            raise ValueError(
                f"{self.ffn_units} FFN units less {self.routing.shared_units} shared ones do not split into "
                f"{self.routing.experts} experts"
            )
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        if self.routing.attention_experts not in (1, self.heads // self.kv_heads):
            raise ValueError("mixture of attention needs heads = kv_heads · attention_experts")
        if list(self.shares) != sorted(set(self.shares)) or not all(0 < s <= 1 for s in self.shares):
            raise ValueError(f"shares must ascend within (0, 1], not {self.shares}")
        if self.default_share not in self.shares:
            raise ValueError(f"the default share {self.default_share} is none of {self.shares}")
        return self
