import numpy as np
import pytest

from fedrecall.client.training.negatives import draw_negatives

ITEMS, ROUNDS = 20, 2000


@pytest.mark.parametrize("count", [1, 5, 50])
def test_negatives_are_distinct_and_uniform_over_the_whole_catalogue(count: int) -> None:
    """2,000 rounds: an item left out, or drawn 1.5 times as often, is more than 5 standard errors off."""
    drawn = np.stack([draw_negatives(3, round, ITEMS, count) for round in range(ROUNDS)])
    assert drawn.shape[1] == min(count, ITEMS) and drawn.dtype == np.int32
    assert all(len(set(row)) == len(row) for row in drawn.tolist())
    share = drawn.shape[1] / ITEMS
    counts = np.bincount(drawn.ravel(), minlength=ITEMS)
    assert (np.abs(counts - ROUNDS * share) <= 5 * np.sqrt(ROUNDS * share * (1 - share)) + 1e-9).all()


def test_negatives_are_public_and_new_each_round() -> None:
    first = draw_negatives(3, 0, 1000, 50)
    np.testing.assert_array_equal(draw_negatives(3, 0, 1000, 50), first)
    for other in (draw_negatives(3, 1, 1000, 50), draw_negatives(4, 0, 1000, 50)):
        assert len(set(first.tolist()) & set(other.tolist())) < 15
