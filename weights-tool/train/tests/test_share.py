import numpy as np
import pytest
import torch
from conftest import CLAMPED, SOFTMAX, tiny_ids, tiny_model

from dsmoe_train.share import (
    MutualInformationWeights,
    allocate,
    draw_available,
    draw_levels,
    mean_by_level,
    shares_by_level,
    spread,
    steer_thresholds,
)

SHARES = (0.3, 0.6, 1.0)


@pytest.mark.parametrize("routing", [CLAMPED, {**SOFTMAX, "source": "own"}], ids=["clamped", "softmax"])
def test_the_control_reaches_every_share_in_every_layer(routing):
    model = tiny_model(routing, shares=SHARES, default_share=0.6)
    target = spread(SHARES, [1.0, 1.5])
    ids, level = tiny_ids(12, 32), torch.arange(12) % 3
    for _ in range(40):
        with torch.no_grad():
            output = model(ids, level_B=level)
        measured = shares_by_level(output.ffn, level, 3)
        steer_thresholds(model.gates(), output.ffn, level.numpy(), target, rate=0.5)
    torch.testing.assert_close(measured, target, rtol=0, atol=0.04)
    assert (measured[:, 2] == 1).all()


def test_a_level_without_sequences_goes_by_all_scores():
    model = tiny_model(CLAMPED, shares=SHARES, default_share=0.6)
    target = spread(SHARES, [1.0, 1.0])
    ids = tiny_ids(12, 32)
    full = torch.full((12,), 2)
    with torch.no_grad():
        output = model(ids, level_B=full)
        steer_thresholds(model.gates(), output.ffn, full.numpy(), target, rate=1.0)
        for gate, routed in zip(model.gates(), output.ffn, strict=True):
            for level in (0, 1):
                active = (routed.z_BTN + gate.threshold_S[level] > 0).float().mean()
                assert active.item() == pytest.approx(SHARES[level], abs=0.01)
    # Share 1 is exact and stays.
    assert all(gate.threshold_S[2] == 1e4 for gate in model.gates())


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [10.0, 1.0, 0.5]])
def test_spread_keeps_the_mean(weights):
    target = spread(SHARES, weights)
    torch.testing.assert_close(target.mean(0), torch.tensor(SHARES), rtol=1e-5, atol=1e-6)
    assert target.max() <= 1 and (target[:, 2] == 1).all()
    if weights[0] == 2:
        assert target[0, 0] / target[1, 0] == pytest.approx(2)


def test_allocate_gives_to_the_layer_that_needs_it():
    shares = (0.25, 0.5, 1.0)
    cost = np.array([[1.0, 0.1, 0.0], [0.1, 0.05, 0.0], [0.1, 0.05, 0.0]])
    assert allocate(cost, shares, 0.25) == [0.25, 0.25, 0.25]
    assert allocate(cost, shares, 1 / 3) == pytest.approx([0.5, 0.25, 0.25])
    for mean in (0.3, 0.4, 0.55, 0.7, 0.95):  # whatever the grid leaves over is spent too
        assert np.mean(allocate(cost, shares, mean)) == pytest.approx(mean)
    assert allocate(cost, shares, 1.0) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("sequences", [1, 4, 16, 33])
def test_levels_come_in_their_proportions(sequences):
    rng = np.random.default_rng(3)
    weights = (0.5, 0.25, 0.25)
    counts = np.bincount(draw_levels(rng, sequences, weights), minlength=3)
    assert counts.sum() == sequences
    assert np.all(np.abs(counts - sequences * np.array(weights)) < 1)


def test_availability():
    rng = np.random.default_rng(4)
    available = draw_available(rng, 3, 200, 10, 0.5, 0.6)
    part = available.mean((0, 2))
    assert part.min() >= 0.6 and (part == 1).mean() > 0.5
    assert (part < 1).mean() > 0.3
    # Layers differ for the same sequence.
    limited = part < 1
    assert (available[0, limited] != available[1, limited]).any()
    assert draw_available(rng, 3, 4, 10, 0.0, 0.6) is None


def test_alpha_goes_up_where_a_layer_is_too_active():
    weights = MutualInformationWeights(3, 1e-3, torch.tensor([0.4, 0.4, 0.4]), torch.device("cpu"))
    for _ in range(5):
        weights.steer(torch.tensor([0.9, 0.4, 0.1]))
    up, same, down = weights.alpha_L.tolist()
    assert up > 1.5e-3 and same == pytest.approx(1e-3) and down < 7e-4
    fixed = MutualInformationWeights(1, 6.3e-4, None, torch.device("cpu"))
    fixed.steer(torch.tensor([0.9]))
    assert fixed.alpha_L.item() == pytest.approx(6.3e-4)


def test_a_mean_for_every_level_that_was_there():
    assert mean_by_level(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2])) == {0: 2.0, 2: 2.5}
