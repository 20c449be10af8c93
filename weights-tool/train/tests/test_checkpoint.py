import json

import pytest
import torch
from conftest import CLAMPED, SOFTMAX, node, tiny_ids, tiny_model
from safetensors.torch import load_file, save_file

from dsmoe_train.checkpoint import load_checkpoint, save_checkpoint
from dsmoe_train.config import ConfigError
from dsmoe_train.model import Model
from dsmoe_train.quantise import fake_quantise

SHARES = dict(shares=(0.4, 0.7, 1.0), default_share=0.7)
CONFIGS = {
    "dense": ({}, {"eos_tokens": (3,), "bos_token": 1}),
    "untied": ({}, {"tied_head": False}),
    "clamped, shared expert, one layer ahead": (CLAMPED, SHARES),
    "softmax": (SOFTMAX, SHARES),
    "top-k": ({**SOFTMAX, "top_k": 2}, {}),
    "two-layer router": ({**SOFTMAX, "router_units": 16}, SHARES),
    "two-matrix experts": (SOFTMAX, {"ffn": "gelu", **SHARES}),
    "mixture of attention": ({**SOFTMAX, "attention_experts": 2}, SHARES),
}


@pytest.fixture
def text_home(tmp_path):
    home = tmp_path / "text"
    home.mkdir()
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (home / "tokenizer.json").write_text(json.dumps(tokenizer))
    (home / "chat_template.jinja").write_text("{{ messages }}")
    return home


def trained(routing, changes) -> Model:
    """A model whose gates are as training leaves them: centred, biased, with thresholds."""
    model = tiny_model(routing, **changes)
    for gate in [*model.gates(), *model.attention_gates()]:
        gate.router.centre_D.normal_(0, 0.1)
        gate.router.bias.data.normal_()
    below_one = len(model.config.shares) - 1
    for gate in model.gates():
        thresholds = [-0.1, 0.2] if gate.kind == "clamped_linear" else [1.1, 0.8]
        gate.threshold_S[:below_one] = torch.tensor(thresholds)[:below_one]
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_is_the_model_at_every_share(name, tmp_path, text_home):
    model = trained(*CONFIGS[name])
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), text_home)
    again = load_checkpoint(tmp_path / "out")
    assert again.config == model.config
    ids = tiny_ids()
    for level in range(len(model.config.shares)):
        levels = torch.full((3,), level)
        with torch.no_grad():
            expected, actual = model(ids, level_B=levels), again(ids, level_B=levels)
        torch.testing.assert_close(actual.head, expected.head, rtol=1e-4, atol=1e-4)
        if level == len(model.config.shares) - 1 and model.config.routing.gate == "clamped_linear":
            assert all((routed.g_BTN == 1).all() for routed in actual.ffn)
    # …and writing what was read gives the same tensors.
    save_checkpoint(tmp_path / "twice", again.config, again.state_dict(), text_home)
    first, second = (load_file(tmp_path / d / "model.safetensors") for d in ("out", "twice"))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "routing, changes",
    [
        (CLAMPED, {**SHARES, "eos_tokens": (3, 4)}),
        ({**CLAMPED, "source": "own", "shared_units": 0, "experts": 5}, SHARES),
        (SOFTMAX, SHARES),
        ({**SOFTMAX, "top_k": 2}, {"tied_head": False}),
        ({"experts": 5}, {}),
    ],
)
def test_the_packer_reads_what_the_trainer_writes(routing, changes, tmp_path, text_home):
    model = trained(routing, changes)
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), text_home)
    read = json.loads(node("import.ts", tmp_path / "out"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(read["tensors"]) == set(written)
    for name, tensor in written.items():
        assert read["tensors"][name]["shape"] == list(tensor.shape), name
        assert read["tensors"][name]["sum"] == pytest.approx(tensor.double().sum().item(), rel=1e-4, abs=1e-4), name
    config, gate = read["config"], read["config"]["gate"]
    assert (config["experts"], config["expertUnits"], config["sharedUnits"]) == (
        model.config.routing.experts, model.config.expert_units, model.config.routing.shared_units,
    )  # fmt: skip
    assert config["eosTokens"] == list(model.config.eos_tokens) and read["hasTemplate"]
    assert gate["kind"] == model.config.routing.gate and gate["source"] == model.config.routing.source
    if len(model.config.shares) > 1:
        assert sorted(gate["offsets"]) == ["0.4", "0.7", "1"]
    if gate["kind"] == "clamped_linear":
        assert gate["offsets"]["0.7"] == [0, 0] and gate["offsets"]["0.4"] == pytest.approx([-0.3, -0.3])


@pytest.mark.parametrize(
    "routing, changes, message",
    [
        ({**SOFTMAX, "router_units": 16}, SHARES, "router.weight"),
        (SOFTMAX, {"ffn": "gelu", **SHARES}, "gelu"),
    ],
)
def test_the_packer_refuses_what_it_cannot_serve(routing, changes, message, tmp_path, text_home):
    model = trained(routing, changes)
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), text_home)
    with pytest.raises(AssertionError, match=message):
        node("import.ts", tmp_path / "out")


def test_a_quantised_checkpoint_holds_what_the_quantised_model_computes(tmp_path, text_home):
    model = trained(CLAMPED, SHARES)
    save_checkpoint(tmp_path / "out", model.config, model.state_dict(), text_home, quantised=True)
    again = load_checkpoint(tmp_path / "out")
    model.set_quantised(True)
    with torch.no_grad():
        torch.testing.assert_close(again(tiny_ids()).head, model(tiny_ids()).head, rtol=1e-4, atol=1e-4)
    weight = model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(again.layers[0].mlp.down_proj.weight, fake_quantise(weight))


def llama(directory, changes=None):
    config = {
        "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "eos_token_id": 2, "rope_theta": 100000, **(changes or {}),
    }  # fmt: skip
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_llama_directory_in_several_files(tmp_path, text_home):
    model = tiny_model(rope_theta=100000.0, eos_tokens=(2,))
    save_checkpoint(tmp_path / "whole", model.config, model.state_dict(), text_home)
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    del tensors["rope.inv_freq"]
    home = llama(tmp_path / "parts")
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:5]}, home / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n].bfloat16() for n in names[5:]}, home / "model-00002-of-00002.safetensors")
    again = load_checkpoint(home)
    assert again.config == model.config
    with torch.no_grad():
        error = (again(tiny_ids()).head - model(tiny_ids()).head).norm() / model(tiny_ids()).head.norm()
    assert error < 0.02


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gpt2"}, "gpt2 model"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "scales its RoPE"),
        ({}, "no model.safetensors"),
    ],
)
def test_what_a_checkpoint_directory_is_refused_for(changes, message, tmp_path):
    home = llama(tmp_path / "in", changes)
    if message != "no model.safetensors":
        save_file({"x": torch.zeros(1)}, home / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(home)


def test_a_missing_tensor_is_named(tmp_path):
    home = llama(tmp_path / "in")
    save_file({"x": torch.zeros(1)}, home / "model.safetensors")
    with pytest.raises(ConfigError, match=r"no tensor model\.embed_tokens\.weight"):
        load_checkpoint(home)


@pytest.mark.parametrize(
    "config, tensors, message",
    [
        ("{", None, "is not JSON"),
        ("[]", None, "cannot be read"),
        ("{}", None, "has no 'model_type'"),
        ({"num_attention_heads": "four"}, None, "cannot be read"),
        ({"num_key_value_heads": 3}, None, "multiple of kv_heads"),
        ({}, {"model.embed_tokens.weight": (7, 32)}, "size mismatch for embed_tokens"),
        ({}, b"not safetensors", "is not a safetensors file"),
    ],
)
def test_a_broken_checkpoint_says_what_is_broken(config, tensors, message, tmp_path, text_home):
    model = tiny_model(eos_tokens=(2,))
    save_checkpoint(tmp_path / "in", model.config, model.state_dict(), text_home)
    home = llama(tmp_path / "in", config if isinstance(config, dict) else None)
    if isinstance(config, str):
        (home / "config.json").write_text(config)
    if isinstance(tensors, dict):
        whole = load_file(home / "model.safetensors")
        save_file({**whole, **{name: torch.zeros(shape) for name, shape in tensors.items()}}, home / "model.safetensors")
    elif tensors:
        (home / "model.safetensors").write_bytes(tensors)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(home)
