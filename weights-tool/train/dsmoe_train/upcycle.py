"""A dense teacher becomes a DS-MoE student. In reading order: the whole, unit order, gates, sensitivity.

1. The hidden units of every FFN are put in order: those with the largest mean output first, as the shared expert; the others
   clustered by co-activation, so that an expert's units are wanted by the same tokens. Reordering changes nothing yet.
2. Every gate starts as a ridge regression from its source to the log of each expert's output norm: what a perfect selection
   would go by. With clamped linear gates, share 1 is still the teacher itself.
3. Thresholds start at the quantiles of those scores; what each layer costs alone spreads the shares over layers.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from .config import ConfigError, TrainConfig
from .data import TokenStream
from .distributed import World
from .files import write_whole
from .gate import FULL_OFFSET, Gate, Routed
from .model import FeedForward, Model
from .model_config import ModelConfig
from .objectives import Teacher, head_loss
from .share import allocate, spread, steer_thresholds, target_threshold

CLUSTER_TOKENS = 8192
RIDGE_BATCH = 8
"""Sequences at a time."""


def upcycle(teacher: Model, config: TrainConfig, world: World) -> tuple[Model, Tensor | None]:
    """Returns the student, on the teacher's device, and the target share of every layer at every level (on the CPU; None
    if all layers are alike). Every process does the same work and gets the same student."""
    settings, t = config.upcycle, teacher.config
    width = settings.narrow or t.ffn_units
    if settings.narrow and config.routing.gate != "all":
        raise ConfigError("upcycle.narrow is the baseline without routing: set routing.gate to 'all'")
    if width > t.ffn_units:
        raise ConfigError(f"upcycle.narrow = {width}, but the teacher has {t.ffn_units} units")
    shape = t.model_dump(exclude={"routing", "shares", "default_share", "ffn_units"})
    served = {"routing": config.routing, "shares": config.share.levels, "default_share": config.share.default}
    student = Model(ModelConfig(**{**shape, **served}, ffn_units=width)).to(world.device)
    sample = TokenStream(config.data.sources, "train", config.data.tokens, t.vocab, config.run.seed + 1)
    ids_BT = torch.from_numpy(sample.next(settings.sample_sequences)[:, :-1]).to(world.device)
    order_LF = _unit_order(teacher, student.config, ids_BT, config, world)
    _copy_weights(teacher, student, order_LF)
    if not student.gates():
        return student, None
    target_LS = spread(config.share.levels, [1.0] * t.layers)
    _start_gates(teacher, student, ids_BT, settings, target_LS)
    if not settings.sensitivity or config.routing.top_k:
        return student, None
    some = ids_BT[: settings.sensitivity_sequences]
    cost_LX = _sensitivity(teacher, student, some, settings.sensitivity)
    columns = [
        allocate(cost_LX, settings.sensitivity, share) if share < 1 else [1.0] * t.layers for share in config.share.levels
    ]
    target_LS = torch.tensor(columns).T.contiguous()
    return student, target_LS


# ---- The order of hidden units --------------------------------------------------------------------------------------


def _unit_order(teacher: Model, student: ModelConfig, ids_BT: Tensor, config: TrainConfig, world: World) -> np.ndarray:
    """[L, F]: which of the teacher's units stands at each place of the student."""
    if config.upcycle.unit_order:
        order_LF = np.load(config.upcycle.unit_order)["order"]
        if order_LF.shape != (student.layers, student.ffn_units):
            raise ConfigError(f"{config.upcycle.unit_order} is of a model of another shape: {order_LF.shape}")
        return order_LF
    strength = _unit_strengths(teacher, ids_BT)
    order_LF = np.stack(
        [
            order_units(x_FX, student.routing.shared_units, student.routing.experts, student.ffn_units, config)
            for x_FX in tqdm(strength, total=student.layers, desc="clustering", disable=not world.is_first)
        ]
    )
    if world.is_first:
        path = Path(config.run.directory) / "unit_order.npz"
        write_whole(path, lambda to: _save_order(to, order_LF))
    return order_LF


def _save_order(path: Path, order_LF: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, order=order_LF)


@torch.no_grad()
def _unit_strengths(teacher: Model, ids_BT: Tensor):
    """Layer by layer, how much each hidden unit adds to the output, |m| · ‖its column‖, for a sample of tokens X: [F, X]."""
    inputs = [[] for _ in range(teacher.config.layers)]
    stride = max(1, ids_BT.numel() // CLUSTER_TOKENS)
    for part in ids_BT.split(RIDGE_BATCH):
        output = teacher(part, lambda *_: None, keep=True)
        for layer, h_BTD in enumerate(output.ffn_input):
            inputs[layer].append(h_BTD.flatten(0, 1)[::stride])
    for layer, block in enumerate(teacher.layers):
        m_XF = block.mlp.hidden_units(torch.cat(inputs[layer])[None])[0].float()
        yield (m_XF.abs() * block.mlp.down_proj.weight.norm(dim=0)).T.cpu().numpy()


def order_units(strength_FX: np.ndarray, shared: int, experts: int, width: int, config: TrainConfig) -> np.ndarray:
    """The strongest `shared` units, then expert by expert; the first `width` of the strongest if there is one expert only."""
    by_strength = np.argsort(-np.square(strength_FX).mean(1), kind="stable")
    if experts == 1:
        return by_strength[:width]
    rest = np.sort(by_strength[shared:])
    rng = np.random.default_rng(config.run.seed)
    expert = balanced_clusters(strength_FX[rest], experts, config.upcycle.cluster_iterations, rng)
    return np.concatenate([by_strength[:shared], rest[np.argsort(expert, kind="stable")]])


def balanced_clusters(x_FX: np.ndarray, clusters: int, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Spherical k-means with clusters of equal size, each round an optimal assignment. Returns the cluster of every row."""
    x = x_FX / np.maximum(np.linalg.norm(x_FX, axis=1, keepdims=True), 1e-9)
    size = len(x) // clusters
    centres = [x[rng.integers(len(x))]]
    while len(centres) < clusters:  # k-means++: the next centre is far from all so far
        distance = np.maximum(1 - (x @ np.stack(centres).T).max(1), 1e-6) ** 2
        centres.append(x[rng.choice(len(x), p=distance / distance.sum())])
    centre = np.stack(centres)
    best, assigned = -np.inf, np.zeros(len(x), dtype=int)
    for _ in range(iterations):
        similarity = x @ centre.T
        _, seat = linear_sum_assignment(np.repeat(similarity, size, axis=1), maximize=True)
        total = similarity[np.arange(len(x)), seat // size].sum()
        if total <= best + 1e-3 * abs(total):
            break
        best, assigned = total, seat // size
        centre = np.stack([x[assigned == k].mean(0) for k in range(clusters)])
        centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-9)
    return assigned


@torch.no_grad()
def _copy_weights(teacher: Model, student: Model, order_LF: np.ndarray) -> None:
    state = {name: tensor for name, tensor in teacher.state_dict().items() if ".mlp." not in name}
    student.load_state_dict(state, strict=False)
    for layer, order in enumerate(order_LF):
        order = torch.from_numpy(order).long().to(student.inv_freq.device)
        old, new = teacher.layers[layer].mlp, student.layers[layer].mlp
        if old.kind == "swiglu":
            gate, up = old.gate_up_proj.weight.chunk(2)
            new.gate_up_proj.weight.copy_(torch.cat([gate[order], up[order]]))
        else:
            new.up_proj.weight.copy_(old.up_proj.weight[order])
        new.down_proj.weight.copy_(old.down_proj.weight[:, order])


# ---- Gates ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _start_gates(teacher: Model, student: Model, ids_BT: Tensor, settings, target_LS: Tensor) -> None:
    """Ridge regression from the gate's source to log ‖E_n(h)‖, scaled to `gate_spread`, and thresholds at its quantiles."""
    routed = []
    parts = [teacher(part, lambda *_: None, keep=True).ffn_input for part in ids_BT.split(RIDGE_BATCH)]
    for layer, block in enumerate(student.layers):
        h_BTD = torch.cat([part[layer] for part in parts])
        source_BTD = torch.cat([part[layer - 1] for part in parts]) if block.reads_previous else h_BTD
        norm_BTN = torch.cat([expert_norms(block.mlp, h) for h in h_BTD.split(RIDGE_BATCH)])
        wanted_XN = torch.log(norm_BTN + 1e-3 * norm_BTN.mean()).flatten(0, 1)
        fit_router(block.gate, source_BTD.flatten(0, 1).float(), wanted_XN, settings.ridge, settings.gate_spread)
        z_BTN = torch.cat([block.gate.router(source) for source in source_BTD.split(RIDGE_BATCH)])
        routed.append(Routed(z_BTN, z_BTN))
    if not student.config.routing.top_k:
        nobodys_B = np.full(len(ids_BT), -1)  # every level goes by all scores
        steer_thresholds(student.gates(), routed, nobodys_B, target_LS, rate=1.0)


def expert_norms(mlp: FeedForward, h_BTD: Tensor) -> Tensor:
    """‖E_n(h)‖ of every routed expert, [B, T, N]."""
    m_BTNU = mlp.hidden_units(h_BTD)[..., mlp.shared_units :].unflatten(-1, (mlp.experts, mlp.units)).float()
    down_DNU = mlp.down_proj.weight[:, mlp.shared_units :].unflatten(-1, (mlp.experts, mlp.units))
    # ‖W m‖² = mᵀ (Wᵀ W) m needs no [.., N, D].
    gram_NUU = torch.einsum("dnu,dnv->nuv", down_DNU, down_DNU)
    return torch.einsum("btnu,nuv,btnv->btn", m_BTNU, gram_NUU, m_BTNU).clamp(min=0).sqrt()


def fit_router(gate: Gate, source_XD: Tensor, wanted_XN: Tensor, ridge: float, spread_: float) -> None:
    """Least squares with a penalty; a two-layer router gets random features and fits its second layer."""
    router = gate.router
    router.centre_D.copy_(source_XD.mean(0))
    x = source_XD - router.centre_D
    if router.hidden is not None:
        generator = torch.Generator().manual_seed(0)
        random = torch.empty(router.hidden.weight.shape).normal_(0, x.shape[1] ** -0.5, generator=generator)
        router.hidden.weight.copy_(random)
        router.hidden.bias.zero_()
        x = F.gelu(router.hidden(x))
    mean_N, mean_D = wanted_XN.mean(0), x.mean(0)
    x, y = x - mean_D, wanted_XN - mean_N
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(gram, x.T @ y)
    predicted = x @ weight + mean_N
    scale = spread_ / predicted.std().clamp(min=1e-6)
    router.weight.copy_((weight * scale).T)
    router.bias.copy_((mean_N - mean_D @ weight) * scale)


# ---- What each layer costs ------------------------------------------------------------------------------------------


@torch.no_grad()
def _sensitivity(teacher: Model, student: Model, ids_BT: Tensor, shares: tuple[float, ...]) -> np.ndarray:
    """KL to the teacher when one layer alone runs at a share and all others dense, [L, shares]."""
    gates = student.gates()
    dense = FULL_OFFSET if gates[0].kind == "clamped_linear" else 0.0
    kept = [gate.threshold_S.clone() for gate in gates]
    level_B = torch.zeros(len(ids_BT), dtype=torch.long, device=ids_BT.device)
    target_BT = ids_BT.roll(-1, 1)
    dtype, student.dtype = student.dtype, teacher.dtype
    x_BTD, head_VD = teacher(ids_BT, lambda *parts: parts).head
    soft = Teacher(x_BTD, head_VD.to(x_BTD.dtype))

    def head(x_BTD: Tensor, head_VD: Tensor) -> float:
        return head_loss(x_BTD, head_VD, target_BT, soft, lm_weight=0.0, kl_weight=1.0).kl.item()

    for gate in gates:
        gate.threshold_S.fill_(dense)
    routed = student(ids_BT, lambda *_: None, level_B=level_B).ffn
    base = student(ids_BT, head, level_B=level_B).head
    cost = np.zeros((len(gates), len(shares)))
    for layer, gate in enumerate(gates):
        for column, share in enumerate(shares):
            if share == 1:
                continue
            z_1XN = routed[layer].z_BTN.flatten(0, 1)[None]
            gate.threshold_S.fill_(target_threshold(gate.kind, z_1XN, z_1XN.new_tensor([share])).item())
            cost[layer, column] = student(ids_BT, head, level_B=level_B).head - base
        gate.threshold_S.fill_(dense)
    for gate, threshold_S in zip(gates, kept, strict=True):
        gate.threshold_S.copy_(threshold_S)
    student.dtype = dtype
    return cost
