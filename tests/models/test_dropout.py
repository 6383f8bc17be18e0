"""Dropout on CPU: exact probabilities, independent places, torch's function and gradient for what was kept."""

import pytest
import torch

from models.layers import dropout as module

CPU = torch.device("cpu")
N = 1_000_003


@pytest.mark.parametrize("probability", [2**-16, 0.05, 0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped(probability):
    """Within 5 standard errors: of the draws, and of the thresholds, of which there are 4,096."""
    torch.manual_seed(round(probability * 1e6))
    share = 1 - module.kept_share(probability)
    assert abs(share - probability) <= 2**-17
    kept = module.draw_kept((N,), probability, CPU)
    assert kept.dtype == torch.uint8
    assert set(kept.unique().tolist()) <= {0, 1}
    error = (share * (1 - share) / N) ** 0.5 + 0.5 / 256 / 64
    assert abs(1 - kept.double().mean().item() - share) <= 5 * error
    dropped = module.draw_dropped((N,), probability, CPU)
    assert abs(dropped.double().mean().item() - share) <= 5 * error


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_places_are_independent(probability):
    """Neighbours, and those a threshold apart."""
    torch.manual_seed(0)
    kept = module.draw_kept((2**20,), probability, CPU).double() - (1 - probability)
    variance = probability * (1 - probability)
    for apart in (1, 2, 7, 8, 4096):
        together = (kept[:-apart] * kept[apart:]).mean().item()
        assert abs(together) <= 5 * variance / 2**10 + 1e-4 * variance


def test_values_and_gradients_of_what_was_kept():
    torch.manual_seed(1)
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    y = module.dropout(x, 0.3, training=True)
    torch.manual_seed(2)
    kept = module.draw_kept(x.shape, 0.3, CPU)
    torch.testing.assert_close(y, x * kept / module.kept_share(0.3))
    weight = torch.randn_like(x)
    (grad,) = torch.autograd.grad((y * weight).sum(), x)
    torch.testing.assert_close(grad, weight * kept / module.kept_share(0.3))


def test_nothing_is_dropped_outside_training_or_at_0():
    x = torch.randn(3)
    assert module.dropout(x, 0.5, training=False) is x
    assert module.dropout(x, 0.0, training=True) is x
