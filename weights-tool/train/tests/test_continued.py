import pytest
import torch
from conftest import CLAMPED, SOFTMAX, log_lines, settings, tiny_ids, tiny_model

from dsmoe_train.checkpoint import load_checkpoint, save_checkpoint
from dsmoe_train.config import ConfigError
from dsmoe_train.continued import continued, move_centre
from dsmoe_train.distributed import World
from dsmoe_train.trainer import train

FURTHER = {"upcycle": None, "stages.layerwise": None, "stages.end_to_end.quantise_from": 1.0}


def further(world_of_files, run, student, **changes):
    """The upcycled run's settings, for its checkpoint instead of a fresh student."""
    return settings(world_of_files, run, "upcycle", **{**FURTHER, "student": str(student), **changes})


@pytest.mark.parametrize("routing", [CLAMPED, SOFTMAX, {**SOFTMAX, "router_units": 16}])
def test_a_centre_moves_and_nothing_else_does(routing):
    model = tiny_model(routing, shares=(0.5, 1.0), default_share=0.5)
    before = model(tiny_ids())
    for block in model.layers:
        move_centre(block.gate, torch.randn(model.config.hidden))
    after = model(tiny_ids())
    torch.testing.assert_close(after.head, before.head, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a.g_BTN > 0, b.g_BTN > 0) for a, b in zip(after.ffn, before.ffn, strict=True))


def test_a_checkpoint_goes_on_where_it_stopped(runs, world_of_files, tmp_path):
    first = runs["upcycle"] / "checkpoint"
    config = further(world_of_files, tmp_path / "further", first)
    old, (student, target_LS) = load_checkpoint(first), continued(config, World(0, 1, torch.device("cpu")))
    assert target_LS.mean(0).tolist() == pytest.approx([0.4, 0.7, 1.0], abs=1e-3)
    for level in range(3):
        level_B = torch.full((3,), level)
        one, other = (model(tiny_ids(), level_B=level_B).head for model in (old, student))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    checkpoint = train(config)
    for share in (0.4, 0.7):
        spread = log_lines(tmp_path / "further")[-1][f"share_{share:g}"]
        assert sum(spread) / len(spread) == pytest.approx(share, abs=0.1)
    new = load_checkpoint(checkpoint)
    assert new.config == old.config
    assert not torch.equal(new.layers[0].mlp.down_proj.weight, old.layers[0].mlp.down_proj.weight)
    assert (checkpoint / "chat_template.jinja").is_file()


def test_a_dense_checkpoint_goes_on(runs, world_of_files, tmp_path):
    changes = {"model": None, "student": str(runs["dense"] / "checkpoint")}
    train(settings(world_of_files, tmp_path / "further", "dense", **changes))
    assert log_lines(tmp_path / "further")[0]["lm"] < log_lines(runs["dense"])[0]["lm"] - 0.1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"share.levels": [0.5, 0.7, 1.0]}, r"serves the shares \[0.4, 0.7, 1.0\], by default 0.7"),
        ({"objectives.mutual_information": 1e-3}, "clamped_linear gates"),
    ],
)
def test_a_student_that_cannot_go_on_so(changes, message, runs, world_of_files, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(further(world_of_files, tmp_path / "run", runs["upcycle"] / "checkpoint", **changes))


def test_a_student_of_another_vocabulary_than_its_teacher(world_of_files, tmp_path):
    student = tiny_model(CLAMPED, vocab=128, shares=(0.4, 0.7, 1.0), default_share=0.4)
    save_checkpoint(tmp_path / "student", student.config, student.state_dict(), world_of_files / "text")
    with pytest.raises(ConfigError, match="the teacher knows 96 tokens and the student 128"):
        train(further(world_of_files, tmp_path / "run", tmp_path / "student", **{"share.default": 0.4}))


@pytest.mark.parametrize("steps_before_saving", [False, True])
def test_weights_that_are_no_numbers_are_never_saved(steps_before_saving, runs, world_of_files, tmp_path):
    student = load_checkpoint(runs["upcycle"] / "checkpoint")
    with torch.no_grad():
        student.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    save_checkpoint(tmp_path / "student", student.config, student.state_dict(), world_of_files / "text")
    changes = {"run.log_every": 100, "run.stop_after_minutes": 1e-6} if steps_before_saving else {}
    config = further(world_of_files, tmp_path / "run", tmp_path / "student", **changes)
    with pytest.raises(ConfigError, match="the gradient of step 0 of end_to_end is nan"):
        train(config)
    assert not (tmp_path / "run" / "snapshot.pt").exists()
    assert not (tmp_path / "run" / "checkpoint").exists()
