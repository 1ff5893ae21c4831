import math

import numpy as np
import pytest

from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.records import Update
from fedrecall.server.training.aggregation import mean_of, sum_updates
from fedrecall.server.training.validation import schema_of


def updates_of(rng, count, dtype=np.float32):
    """Values over 12 orders of magnitude, so that plain sums depend on their order."""

    def values(shape):
        return np.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-10, 2, size=shape), dtype=dtype)

    return [Update(round=1, nonce=f"n{i}", arrays={"w": values((90, 101)), "b": values(())}) for i in range(count)]


def test_the_sum_is_correctly_rounded_and_no_order_changes_a_bit():
    rng = np.random.default_rng(8)
    updates = updates_of(rng, 300)
    schema = schema_of(updates[0].arrays)
    total = sum_updates(iter(updates), schema, round=1)
    assert total.devices == 300 and total.round == 1
    assert total.arrays["w"].shape == (90, 101) and total.arrays["b"].shape == ()
    assert total.arrays["w"].dtype == total.arrays["b"].dtype == np.float64
    columns = np.stack([u.arrays["w"].astype(np.float64).reshape(-1) for u in updates], axis=1)
    expected = np.array([math.fsum(column) for column in columns]).reshape(90, 101)
    np.testing.assert_array_equal(total.arrays["w"], expected)
    assert float(total.arrays["b"]) == math.fsum(float(u.arrays["b"]) for u in updates)
    plain = [sum(column) for column in columns.tolist()]
    assert (np.array(plain) != expected.reshape(-1)).any(), "the data must be able to show a naive sum"
    for _ in range(4):
        order = rng.permutation(300)
        other = sum_updates((updates[i] for i in order), schema, round=1)
        for name, array in total.arrays.items():
            assert array.tobytes() == other.arrays[name].tobytes()


def test_a_round_without_updates_is_a_sum_of_zeros():
    total = sum_updates([], {"w": ((2, 3), np.dtype(np.float32))}, round=4)
    assert total.devices == 0 and total.round == 4
    np.testing.assert_array_equal(total.arrays["w"], np.zeros((2, 3)))


def test_refused_updates_raise_or_count_as_nothing():
    updates = updates_of(np.random.default_rng(9), 3)
    schema = schema_of(updates[0].arrays)
    bad = [
        Update(round=1, nonce="x", arrays={"w": updates[0].arrays["w"]}),
        Update(round=0, nonce="y", arrays=updates[0].arrays),
        Update(round=1, nonce="n1", arrays=updates[0].arrays),
    ]
    for one in bad:
        with pytest.raises(UpdateError):
            sum_updates([*updates, one], schema, round=1)
    told = []
    total = sum_updates(
        [*updates, *bad],
        schema,
        round=1,
        clip_norm=1e9,
        on_refused=lambda update, error: told.append((update.nonce, error.reason)),
    )
    assert told == [("x", "missing"), ("y", "stale"), ("n1", "replay")]
    assert total.devices == 3
    np.testing.assert_array_equal(total.arrays["w"], sum_updates(updates, schema, round=1).arrays["w"])
    with pytest.raises(UpdateError, match="norm"):
        sum_updates(updates, schema, round=1, clip_norm=1e-3)


def test_the_mean_divides_by_the_expected_cohort_only():
    updates = updates_of(np.random.default_rng(10), 3)
    total = sum_updates(updates, schema_of(updates[0].arrays), round=1)
    mean = mean_of(total.arrays, 12.5)
    np.testing.assert_array_equal(mean["w"], total.arrays["w"] / 12.5)
    assert isinstance(mean["b"], np.ndarray) and mean["b"].shape == ()
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PlanError, match="expected_cohort"):
            mean_of(total.arrays, wrong)
