import math

import numpy as np
import pytest
import torch

from fedrecall.models.loss import full_softmax, sampled_softmax

ITEMS = 11


@pytest.fixture
def scores() -> torch.Tensor:
    """Return the scores of the whole catalogue, [batch, length, items]."""
    return 2.0 * torch.randn(3, 4, ITEMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_full_softmax_is_minus_the_log_of_the_probability(scores: torch.Tensor) -> None:
    loss = full_softmax(scores[..., 2], scores).numpy()
    for index in np.ndindex(3, 4):
        weights = [math.exp(s) for s in scores[index].tolist()]
        assert loss[index] == pytest.approx(-math.log(weights[2] / math.fsum(weights)), abs=1e-12)


def test_with_every_other_item_it_is_the_full_softmax(scores: torch.Tensor) -> None:
    others = [i for i in range(ITEMS) if i != 2]
    nothing = torch.zeros(3, ITEMS - 1, dtype=torch.bool)
    exact = full_softmax(scores[..., 2], scores)
    torch.testing.assert_close(
        sampled_softmax(scores[..., 2], scores[..., others], nothing, ITEMS), exact, rtol=0, atol=1e-12
    )
    positive = torch.zeros(3, ITEMS, dtype=torch.bool)
    positive[:, 2] = True
    torch.testing.assert_close(sampled_softmax(scores[..., 2], scores, positive, ITEMS), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3, ITEMS - 1])
def test_the_partition_function_is_right_on_average(scores: torch.Tensor, count: int) -> None:
    """5,000 draws: within 5 standard errors of the sum over the catalogue; one negative less per draw is not."""
    rng, one = np.random.default_rng(count), scores[:1, :1]
    positive = one[..., 2]
    partitions = []
    for _ in range(5_000 if count < ITEMS - 1 else 1):
        drawn = rng.choice([i for i in range(ITEMS) if i != 2], size=count, replace=False)
        loss = sampled_softmax(positive, one[..., drawn], torch.zeros(1, count, dtype=torch.bool), ITEMS)
        partitions.append(float(torch.exp(loss + positive)))
    error = float(np.std(partitions)) / math.sqrt(len(partitions))
    assert abs(np.mean(partitions) - float(one.exp().sum())) < 5 * error + 1e-9
    if count == 3:
        wrong = np.mean(partitions) - (np.mean(partitions) - float(positive.exp())) / count
        assert abs(wrong - float(one.exp().sum())) > 5 * error


def test_a_masked_negative_counts_as_nothing_and_has_no_gradient(scores: torch.Tensor) -> None:
    negative = scores[..., 3:9].clone().requires_grad_()
    masked = torch.zeros(3, 6, dtype=torch.bool)
    masked[0, 1] = masked[1, :] = True
    loss = sampled_softmax(scores[..., 2], negative, masked, ITEMS)
    loss.sum().backward()
    assert negative.grad is not None and torch.isfinite(negative.grad).all()
    hidden = masked[:, None, :].expand_as(negative)
    assert (negative.grad[hidden] == 0).all() and (negative.grad[~hidden] > 0).all()
    kept = torch.cat([negative[:1, :, :1], negative[:1, :, 2:]], dim=2)
    without = sampled_softmax(scores[:1, :, 2], kept, masked[:1, :5] & False, ITEMS)
    torch.testing.assert_close(loss[:1], without, rtol=0, atol=1e-12)
    assert (loss[1] == 0).all(), "without any negative there is nothing to tell apart"


def test_large_scores_do_not_overflow() -> None:
    positive, negative = torch.full((1, 1), 500.0), torch.full((1, 1, 3), 800.0)
    loss = sampled_softmax(positive, negative, torch.zeros(1, 3, dtype=torch.bool), 4)
    assert float(loss) == pytest.approx(300 + math.log(3), rel=1e-6)
