import pytest
import torch
from conftest import CLAMPED, tiny_ids, tiny_model

from dsmoe_train.checkpoint import load_checkpoint, save_checkpoint
from dsmoe_train.compact import expand, shrink
from dsmoe_train.config import ConfigError


def test_a_quantised_checkpoint_travels_almost_unchanged(world_of_files, tmp_path):
    model = tiny_model(CLAMPED, shares=(0.5, 1.0), default_share=0.5)
    save_checkpoint(tmp_path / "in", model.config, model.state_dict(), world_of_files / "text", quantised=True)
    parts = shrink(tmp_path / "in", tmp_path / "small", 8_000)
    files = list((tmp_path / "small").glob("part-*.safetensors"))
    assert len(files) == parts > 2
    whole = (tmp_path / "in" / "model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in files) < whole / 2  # headers and gates weigh much in a tiny model
    expand(tmp_path / "small", tmp_path / "out")
    before, after = load_checkpoint(tmp_path / "in"), load_checkpoint(tmp_path / "out")
    assert after.config == before.config
    for (name, a), b in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        limit = 0.006 if "embed" in name else 0.003
        assert (a - b).norm() <= limit * a.norm() + 1e-6, name
    with torch.no_grad():
        expected, actual = before(tiny_ids()).head.log_softmax(-1), after(tiny_ids()).head.log_softmax(-1)
    assert (expected.exp() * (expected - actual)).sum(-1).mean() < 1e-3
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_a_missing_part_is_named(world_of_files, tmp_path):
    shrink(world_of_files / "teacher", tmp_path / "small", 8_000)
    (tmp_path / "small" / "part-01.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks parts \[1\]"):
        expand(tmp_path / "small", tmp_path / "out")
    with pytest.raises(ConfigError, match="no part-00"):
        expand(tmp_path / "empty", tmp_path / "out")
