"""Ranger against its formulas written plainly, against torch's RAdam, and cut into pieces as ZeRO does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.ranger import STATE_KINDS, Ranger, centralise_gradients, step_size
from tests.pretrain.ranger_definition import Definition, centralised

SHAPES = ((5, 7), (7,), (3, 4, 5), (1,))


def reference(weights, gradients, centralise=True, **options):
    """Weights and slow weights by the formulas; ``gradients`` is a list per step."""
    definition = Definition(weights, **options)
    for at_step in gradients:
        definition.step([centralised(g) for g in at_step] if centralise else at_step)
    return definition.weights, definition.slow


def draw(steps, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]
    gradients = [[torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES] for _ in range(steps)]
    return weights, gradients


def trained(weights, gradients, **options):
    """The parameters and the optimizer after the steps, with gradients given as they are."""
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Ranger(parameters, **options)
    for at_step in gradients:
        for p, g in zip(parameters, at_step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return parameters, optimizer


class Holder(nn.Module):
    """Parameters whose gradients are whatever a test wants."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterList(w.clone() for w in weights)

    def backward(self, gradients):
        sum((p * g).sum() for p, g in zip(self.weights, gradients, strict=True)).backward()


def distance(ours, theirs):
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_fifty_steps_equal_the_formulas(lr):
    weights, gradients = draw(50)
    model = Holder(weights)
    centralise_gradients(model)
    optimizer = Ranger(model.parameters(), lr=lr)
    for at_step in gradients:
        optimizer.zero_grad()
        model.backward(at_step)
        optimizer.step()
    expected, slow = reference(weights, gradients, lr=lr)
    assert distance(model.weights, expected) <= 1e-12
    assert distance([optimizer.state[p]["slow"] for p in model.weights], slow) <= 1e-12
    assert distance(weights, expected) > lr


def test_fifty_steps_in_single_precision():
    weights, gradients = draw(50, torch.float32)
    parameters, _ = trained(weights, gradients)
    exact, _ = reference([w.double() for w in weights], [[g.double() for g in s] for s in gradients], centralise=False)
    scale = max(w.abs().max().item() for w in exact)
    assert distance([p.double() for p in parameters], exact) <= 50 * 2**-24 * scale  # half a unit of rounding per step


def test_without_lookahead_it_is_radam():
    weights, gradients = draw(300)
    parameters, _ = trained(weights, gradients, k=10**9)
    theirs = [nn.Parameter(w.clone()) for w in weights]
    options = {"lr": 1e-3, "betas": (0.95, 0.999), "eps": 1e-5, "weight_decay": 1e-4}
    optimizer = torch.optim.RAdam(theirs, **options, decoupled_weight_decay=True)
    for at_step in gradients:
        for p, g in zip(theirs, at_step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    assert distance(parameters, theirs) <= 1e-9


def test_flattened_and_split_parameters_train_alike():
    weights, gradients = draw(50, torch.float32)
    whole, optimizer = trained(weights, gradients)

    def cut(tensors):
        flat = torch.cat([x.flatten() for x in tensors])
        return [flat[:13], flat[13:60], flat[60:]]

    pieces, split = trained(cut(weights), [cut(g) for g in gradients])
    # vectorised and scalar code round differently in the last bit
    torch.testing.assert_close(torch.cat([p.detach() for p in pieces]), torch.cat(cut(whole)), rtol=3e-7, atol=1e-8)
    for kind in STATE_KINDS:
        ours = torch.cat([split.state[p][kind] for p in pieces])
        torch.testing.assert_close(
            ours, torch.cat(cut([optimizer.state[p][kind] for p in whole])), rtol=1e-6, atol=1e-8
        )


def test_a_restored_state_continues_bit_for_bit():
    """With the slow weights and the count of steps, in the middle of a lookahead period."""
    weights, gradients = draw(20, torch.float32)
    straight, _ = trained(weights, gradients)
    parameters, first = trained(weights, gradients[:10])
    resumed = [nn.Parameter(p.detach().clone()) for p in parameters]
    second = Ranger(resumed)
    for ours, before in zip(resumed, parameters, strict=True):
        second.state[ours] = Ranger.new_state(ours)
        for kind in (*STATE_KINDS, "step"):
            second.state[ours][kind].copy_(first.state[before][kind])
    for at_step in gradients[10:]:
        for p, g in zip(resumed, at_step, strict=True):
            p.grad = g.clone()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(resumed, straight, strict=True))


def test_slow_weights_take_over_every_sixth_step():
    weights, gradients = draw(6)
    fast, _ = trained(weights, gradients, k=10**9)
    parameters, optimizer = trained(weights, gradients)
    for before, f, p in zip(weights, fast, parameters, strict=True):
        torch.testing.assert_close(p.detach(), (before + f.detach()) / 2)
        assert torch.equal(p, optimizer.state[p]["slow"])


def test_rectification_of_the_step():
    """With beta2 = 0.999 the second moment is used from update 6 on, and the full step is approached slowly."""
    assert [step_size(t, 0.95, 0.999)[1] for t in range(1, 8)] == [False] * 5 + [True] * 2
    assert step_size(1, 0.95, 0.999)[0] == pytest.approx(20)
    assert step_size(10**6, 0.95, 0.999)[0] == pytest.approx(1, abs=1e-9)


def test_a_parameter_without_gradient_is_left_alone():
    weights, gradients = draw(1)
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = Ranger(parameters)
    parameters[0].grad = gradients[0][0]
    optimizer.step()
    assert not torch.equal(parameters[0], weights[0])
    assert all(torch.equal(p, w) for p, w in zip(parameters[1:], weights[1:], strict=True))
    assert set(optimizer.state) == {parameters[0]}


def test_centralisation_is_exact_under_accumulation():
    weights, gradients = draw(3)
    model = Holder(weights)
    handles = centralise_gradients(model)
    for at_step in gradients:
        model.backward(at_step)
    for i, p in enumerate(model.weights):
        total = sum(at_step[i] for at_step in gradients)
        if p.dim() > 1:
            total = total - total.mean(dim=tuple(range(1, p.dim())), keepdim=True)
            assert p.grad.flatten(1).sum(1).abs().max() <= 1e-12
        torch.testing.assert_close(p.grad, total)
    for handle in handles:
        handle.remove()
    model.zero_grad()
    model.backward(gradients[0])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.weights, gradients[0], strict=True))


def test_errors_name_the_numbers():
    parameters = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match="k must be at least 1"):
        Ranger(parameters, k=0)
    with pytest.raises(ValueError, match="betas"):
        Ranger(parameters, betas=(0.9, 1.0))
