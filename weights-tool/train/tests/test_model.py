import itertools

import pytest
import torch
from conftest import CLAMPED, SOFTMAX, tiny_config, tiny_ids, tiny_model

from dsmoe_train.gate import clamp_straight_through, without_common_push
from dsmoe_train.model import Model, matmul_parameters

VARIANTS = {
    "clamped, one layer ahead, shared expert": (CLAMPED, {}),
    "clamped, own layer": ({**CLAMPED, "source": "own", "shared_units": 0, "experts": 5}, {}),
    "softmax, linear router": (SOFTMAX, {}),
    "softmax, two-layer router, two-matrix experts": ({**SOFTMAX, "router_units": 16}, {"ffn": "gelu"}),
    "softmax, mixture of attention": ({**SOFTMAX, "attention_experts": 2}, {}),
    "top-k SMoE": ({**SOFTMAX, "top_k": 2}, {}),
    "renormalised top-k SMoE": (dict(experts=5, gate="softmax_renormalised", top_k=2), {}),
}
SHARES = dict(shares=(0.4, 1.0), default_share=0.4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("level", [0, 1], ids=["sparse", "full"])
def test_the_sparse_forward_is_the_dense_one(name, level):
    routing, changes = VARIANTS[name]
    model = tiny_model(routing, **changes, **SHARES)
    for gate in model.gates():
        gate.threshold_S[0] = -0.1 if gate.kind == "clamped_linear" else 1.0
    ids = tiny_ids()
    levels = torch.full((len(ids),), level)
    with torch.no_grad():
        dense = model(ids, level_B=levels)
        model.set_sparse(True)
        sparse = model(ids, level_B=levels)
    torch.testing.assert_close(sparse.head, dense.head, rtol=1e-4, atol=1e-5)
    active = torch.stack([routed.g_BTN > 0 for routed in dense.ffn]).float().mean()
    if model.config.routing.top_k:
        assert active == pytest.approx(model.config.routing.top_k / 5)
    elif level == 1:
        assert active == 1
    else:
        assert 0.1 < active < 0.9


def test_share_one_of_a_clamped_gate_is_the_dense_model_exactly():
    model = tiny_model(CLAMPED, **SHARES)
    dense = tiny_model({"shared_units": 32, "experts": 4}, **SHARES)
    dense.load_state_dict(model.state_dict(), strict=False)
    ids = tiny_ids()
    full = model(ids, level_B=torch.ones(len(ids), dtype=torch.long))
    assert torch.equal(full.head, dense(ids).head)
    # …and no gradient reaches the router from there.
    full.head.square().sum().backward()
    assert all(not gate.router.weight.grad.any() for gate in model.gates())


def test_each_sequence_has_its_own_share():
    model = tiny_model(CLAMPED, **SHARES)
    for gate in model.gates():
        gate.threshold_S[0] = -0.2
    ids = tiny_ids()
    mixed = model(ids, level_B=torch.tensor([0, 1, 0]))
    for row, level in enumerate([0, 1, 0]):
        alone = model(ids[row : row + 1], level_B=torch.tensor([level]))
        torch.testing.assert_close(mixed.head[row], alone.head[0], rtol=1e-5, atol=1e-6)


def test_unavailable_experts_are_off():
    model = tiny_model(CLAMPED, **SHARES)
    available = torch.ones(2, 3, 4, dtype=torch.bool)
    available[:, 1, 2] = False
    output = model(tiny_ids(), level_B=torch.tensor([1, 1, 1]), available_LBN=available)
    for routed in output.ffn:
        assert not routed.g_BTN[1, :, 2].any()
        assert (routed.g_BTN.sum() == routed.g_BTN.numel() - routed.g_BTN.shape[1]).item()


def test_a_look_ahead_gate_reads_the_layer_before():
    model = tiny_model(CLAMPED, **SHARES)
    output = model(tiny_ids(), keep=True)
    for layer, source in [(0, 0), (1, 0)]:
        z = model.layers[layer].gate.router(output.ffn_input[source])
        assert torch.equal(z, output.ffn[layer].z_BTN)


def test_the_bias_has_no_common_mode():
    model = tiny_model(SOFTMAX)
    model(tiny_ids()).ffn[0].z_BTN.square().sum().backward()
    gradient = model.layers[0].gate.router.bias.grad
    assert gradient.abs().max() > 1e-3 and abs(gradient.mean()) < 1e-5


def test_a_clamped_gate_passes_gradients_a_little_outside():
    z = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5], requires_grad=True)
    g = clamp_straight_through(z)
    assert g.tolist() == [0, 0, 0.5, 1, 1]
    g.sum().backward()
    assert z.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_uniform_softmax_gate_starts_at_the_size_of_the_dense_layer():
    model = tiny_model(SOFTMAX)
    for gate in model.gates():
        gate.router.weight.data.zero_()
    dense = tiny_model({"experts": 5})
    dense.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(tiny_ids()).head, dense(tiny_ids()).head, rtol=1e-4, atol=1e-5)


def test_later_tokens_do_not_change_earlier_ones():
    model = tiny_model({**SOFTMAX, "attention_experts": 2})
    ids = tiny_ids()
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 96
    torch.testing.assert_close(model(changed).head[:, :8], model(ids).head[:, :8], rtol=1e-5, atol=1e-6)


def test_attention_experts_share_keys_and_values():
    """Expert n owns query heads n, N + n, …: switching it off equals zeroing those heads' columns of the output."""
    model = tiny_model({**SOFTMAX, "attention_experts": 2})
    model.layers[0].self_attn.gate.router.bias.data = torch.tensor([1e3, -1e3])
    h = torch.randn(1, 6, 32)
    rope = model.rope(6)
    one, _ = model.layers[0].self_attn(h, rope, torch.zeros(1, dtype=torch.long))
    plain = tiny_model()
    plain.layers[0].self_attn.load_state_dict(model.layers[0].self_attn.state_dict(), strict=False)
    columns = plain.layers[0].self_attn.o_proj.weight.data.view(32, 2, 2, 16)  # [D, kv head, expert, E]
    columns[:, :, 0] *= 2  # N · p of the only expert
    columns[:, :, 1] = 0
    other, _ = plain.layers[0].self_attn(h, rope, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_matmul_parameters_of_the_paper_shapes():
    """Dense-1B of the paper has 1,017 M parameters without embeddings and head (facts derived from its Table 1)."""
    changes = dict(vocab=1, hidden=2048, layers=24, heads=32, kv_heads=2, head_dim=64, ffn_units=8192, ffn="gelu")
    with torch.device("meta"):
        dense = Model(tiny_config(**changes))
        moe = Model(tiny_config(dict(experts=32, gate="softmax", router_units=512, attention_experts=16), **changes))
    assert matmul_parameters(dense) / 1e6 == pytest.approx(1017, rel=0.0025)
    assert matmul_parameters(moe) / 1e6 == pytest.approx(1067, rel=0.0035)


@pytest.mark.parametrize(
    "routing, changes, message",
    [
        (dict(experts=3, gate="softmax"), {}, "do not split"),
        (dict(top_k=2), {}, "no router"),
        (dict(experts=4, gate="clamped_linear", top_k=2), {}, "its own zeros"),
        (dict(experts=4, gate="softmax_renormalised"), {}, "needs top_k"),
        (dict(experts=4, gate="softmax", attention_experts=4), {}, "kv_heads"),
        ({}, dict(shares=(1.0, 0.5)), "ascend"),
        ({}, dict(default_share=0.5), "none of"),
    ],
)
def test_what_a_configuration_refuses(routing, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(routing, **changes)


def test_every_variant_has_gradients_everywhere():
    for (routing, changes), level in itertools.product(VARIANTS.values(), [0]):
        model = tiny_model(routing, **changes, **SHARES)
        ids = tiny_ids()
        model(ids, level_B=torch.full((3,), level)).head.square().mean().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []


def test_no_sequence_pushes_a_clamped_gate_as_a_whole():
    z = torch.randn(5, 6, 4, requires_grad=True)
    held = without_common_push(z)
    torch.testing.assert_close(held, z)
    (held * torch.rand(z.shape)).sum().backward()
    assert z.grad.sum((1, 2)).abs().max() < 1e-5
    assert z.grad.abs().mean() > 0.1


@pytest.mark.parametrize(
    "routing, reached", [({**CLAMPED, "source": "own"}, False), (SOFTMAX, True)], ids=["clamped", "softmax"]
)
def test_a_straight_through_gate_teaches_its_router_only(routing, reached):
    gate = tiny_model(routing, **SHARES).layers[0].gate
    source = torch.randn(2, 5, tiny_config(routing).hidden, requires_grad=True)
    gate(source, torch.zeros(2, dtype=torch.long)).g_BTN.square().sum().backward()
    assert gate.router.weight.grad.any()
    assert (source.grad is not None and bool(source.grad.any())) == reached
