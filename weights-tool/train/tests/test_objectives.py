import math

import pytest
import torch
import torch.nn.functional as F

from dsmoe_train.objectives import (
    Teacher,
    head_loss,
    mutual_information,
    relative_error,
    residual_error,
    switch_balance,
    windowed_entropy,
)

B, T, D, V, N = 2, 6, 5, 11, 4


def entropy(p):
    return -(p * p.log()).sum(-1)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("lm_weight, kl_weight", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_the_chunked_head_is_the_plain_loss(chunk, lm_weight, kl_weight):
    x, head, target = double(B, T, D), double(V, D), torch.randint(V, (B, T))
    teacher = Teacher(torch.randn(B, T, 3, dtype=torch.float64), torch.randn(V, 3, dtype=torch.float64))
    ours = head_loss(x, head, target, teacher, lm_weight=lm_weight, kl_weight=kl_weight, chunk=chunk)
    gradients = torch.autograd.grad(2.5 * ours.loss, (x, head))

    log_p = F.log_softmax(F.linear(x, head), -1)
    log_t = F.log_softmax(F.linear(*teacher), -1)
    lm = F.nll_loss(log_p.flatten(0, 1), target.flatten())
    kl = F.kl_div(log_p.flatten(0, 1), log_t.flatten(0, 1), log_target=True, reduction="batchmean")
    plain = torch.autograd.grad(2.5 * (lm_weight * lm + kl_weight * kl), (x, head))

    torch.testing.assert_close((ours.lm, ours.kl), (lm.detach(), kl.detach()))
    each = F.kl_div(log_p, log_t, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(ours.kl_X.view(B, T), each.detach())
    torch.testing.assert_close(ours.loss, lm_weight * lm + kl_weight * kl)
    torch.testing.assert_close(gradients, plain)


def test_the_chunked_head_passes_gradcheck():
    target = torch.randint(V, (B, T))
    teacher = Teacher(torch.randn(B, T, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64))
    loss = lambda x, head: head_loss(x, head, target, teacher, lm_weight=0.4, kl_weight=0.6, chunk=5).loss
    assert torch.autograd.gradcheck(loss, (double(B, T, D), double(V, D)))


def test_a_teacher_that_agrees_costs_nothing():
    x, head = torch.randn(B, T, D, requires_grad=True), torch.randn(V, D)
    loss = head_loss(x, head, torch.zeros(B, T, dtype=torch.long), Teacher(x.detach(), head), lm_weight=0.0, kl_weight=1.0)
    loss.loss.backward()
    assert loss.kl.abs() < 1e-6 and x.grad.abs().max() < 1e-6


def test_half_precision_gradients_are_close():
    x, head, target = torch.randn(B, T, 32), torch.randn(V, 32), torch.randint(V, (B, T))
    exact = torch.autograd.functional.jacobian(lambda x: head_loss(x, head, target, lm_weight=1.0, kl_weight=0.0).loss, x)
    half = x.bfloat16().requires_grad_()
    head_loss(half, head, target, lm_weight=1.0, kl_weight=0.0).loss.backward()
    assert half.grad.dtype == torch.bfloat16
    assert (half.grad.float() - exact).norm() / exact.norm() < 0.02


def check(ours, plain, *inputs):
    torch.testing.assert_close(ours(*inputs), plain(*inputs))
    torch.testing.assert_close(torch.autograd.grad(ours(*inputs), inputs), torch.autograd.grad(plain(*inputs), inputs))
    assert torch.autograd.gradcheck(ours, inputs)


def test_mutual_information_is_its_definition():
    def plain(z):
        p = z.softmax(-1).flatten(0, 1)
        return -entropy(p.mean(0)) + entropy(p).mean()

    check(mutual_information, plain, double(B, T, N))


@pytest.mark.parametrize(
    "z, value",
    [
        (torch.zeros(B, T, N), 0.0),
        (100 * F.one_hot(torch.arange(B * T).view(B, T) % N).float(), -math.log(N)),
        (torch.full((B, T, N), 0.0).index_fill(2, torch.tensor([0]), 100.0), 0.0),
    ],
    ids=["diffuse", "sure and even", "collapsed"],
)
def test_mutual_information_of_the_extremes(z, value):
    assert mutual_information(z).item() == pytest.approx(value, abs=1e-5)


def test_switch_balance_is_its_definition():
    z = double(B, T, N)
    g = torch.zeros(B, T, N).scatter(-1, z.detach().topk(2, -1).indices, 1.0)

    def plain(z):
        counts = g.sum((0, 1))
        return N * (counts / counts.sum() * z.softmax(-1).mean((0, 1))).sum()

    check(lambda z: switch_balance(z, g), plain, z)
    even = F.one_hot(torch.arange(B * T).view(B, T) % N).float()
    assert switch_balance(torch.zeros(B, T, N), even).item() == pytest.approx(1.0)


def test_windowed_entropy_is_its_definition():
    g = torch.rand(B, T, N, dtype=torch.float64, requires_grad=True)

    def plain(g):
        windows = [g[:, start : start + 3].mean(1) for start in range(0, T, 3)]
        return torch.stack([entropy(w / w.sum(-1, keepdim=True)) for w in windows]).mean()

    check(lambda g: windowed_entropy(g, 3), plain, g)


def test_windowed_entropy_rewards_neighbours_that_share_experts():
    same = torch.tensor([[1.0, 1, 0, 0]]).expand(T, N)[None]
    different = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(T // 2, 1)[None]
    assert windowed_entropy(same, 2).item() == pytest.approx(math.log(2))
    assert windowed_entropy(different, 2).item() == pytest.approx(math.log(4))


def test_an_idle_window_does_not_drown_the_others():
    """All experts off, as happens at low shares on degenerate text."""
    g = torch.zeros(1, 2 * T, N)
    g[:, :T] = torch.rand(1, T, N)
    g.requires_grad_()
    (gradient,) = torch.autograd.grad(windowed_entropy(g, T), g)
    assert gradient[:, :T].abs().max() > 0 and (gradient[:, T:] == 0).all()


def test_the_residual_error_is_its_definition():
    student, teacher = (
        [torch.randn(B, T, D, requires_grad=True) for _ in range(3)],
        [torch.randn(B, T, D) for _ in range(3)],
    )
    plain = sum(
        ((s[b, t] - x[b, t]).norm() ** 2 / (x[b, t].norm() ** 2 + 1e-6)).clamp(max=10)
        for s, x in zip(student, teacher, strict=True)
        for b in range(B)
        for t in range(T)
    ) / (3 * B * T)
    ours = residual_error(student, teacher)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(plain, student))
    assert relative_error(torch.full((1, 1, D), 1e6), torch.ones(1, 1, D)) == 10
