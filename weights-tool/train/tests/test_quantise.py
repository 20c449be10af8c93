import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_ids, tiny_model

from dsmoe_train.quantise import fake_quantise, q4

SHAPES = {"normal": 1.0, "shifted": 3.0, "tiny": 1e-6}


@pytest.mark.parametrize("name", SHAPES)
def test_every_part_fits_its_bytes(name):
    weight = torch.randn(24, 96) * SHAPES[name] + (2.0 if name == "shifted" else 0)
    plane = q4(weight)
    for part, top in [(plane.scale_RG, 255), (plane.zero_RG, 255), (plane.code_RGC, 15)]:
        assert torch.equal(part, part.round()) and part.min() >= 0 and part.max() <= top
    error = (plane.dequantise() - weight).norm() / weight.norm()
    assert error < (0.11 if name != "shifted" else 0.08)


def test_a_matrix_on_the_grid_stays_there():
    on_grid = fake_quantise(torch.randn(16, 64)).detach()
    again = fake_quantise(on_grid)
    assert ((again - on_grid).norm() / on_grid.norm()).item() < 2e-3


def test_zeros_stay_zeros():
    weight = torch.randn(4, 64)
    weight[1] = 0
    weight[2, :32] = 0
    rounded = fake_quantise(weight)
    assert not rounded[1].any() and not rounded[2, :32].any() and rounded.isfinite().all()


def test_the_gradient_passes_straight_through():
    weight = torch.randn(8, 32, requires_grad=True)
    upstream = torch.randn(8, 32)
    (fake_quantise(weight) * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, upstream)


def test_it_is_as_good_as_the_packer():
    """The golden was written by the packer itself (tests/goldens/q4.ts)."""
    golden = json.loads((Path(__file__).parent / "goldens" / "q4.json").read_text())
    weight = torch.tensor(golden["weight"]).view(golden["rows"], golden["cols"])
    ours = fake_quantise(weight)
    theirs = torch.tensor(golden["dequantised"]).view_as(weight)
    assert ((theirs - weight).norm() / weight.norm()).item() == pytest.approx(golden["relativeError"], rel=1e-4)
    assert ((ours - weight).norm() / weight.norm()).item() < 1.06 * golden["relativeError"]
    # The packer finds a matrix that was rounded here again.
    again = np.array(golden["dequantisedOfRounded"], dtype=np.float32)
    assert np.linalg.norm(again - np.array(golden["rounded"])) < 0.01 * np.linalg.norm(again)


def test_a_quantised_model_differs_a_little_and_learns():
    model = tiny_model()
    ids = tiny_ids()
    plain = model(ids).head
    model.set_quantised(True)
    rounded = model(ids).head
    change = (rounded - plain).norm() / plain.norm()
    assert 0.005 < change < 0.3
    rounded.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
