import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedrecall.privacy.mechanisms.mechanisms import joint_norm
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.records import CohortSum, Update
from fedrecall.server.training.validation import schema_of, validate_cohort_sum, validate_update

GOOD = {"w": np.full((4, 2), 0.1, dtype=np.float32), "b": np.array(0.2, dtype=np.float32)}
SCHEMA = schema_of(GOOD)


def check(arrays, *, update_round=3, nonce="n", seen=frozenset(), clip_norm=1.0):
    update = Update(round=update_round, nonce=nonce, arrays=arrays)
    validate_update(update, SCHEMA, round=3, seen_nonces=seen, clip_norm=clip_norm)


def test_a_good_update_passes():
    check(GOOD)
    check(GOOD, seen={"other"}, clip_norm=None)


BAD = {
    "missing": [{"w": GOOD["w"]}, {}],
    "extra": [GOOD | {"user.tower": np.zeros(2, dtype=np.float32)}],
    "dtype": [
        GOOD | {"w": GOOD["w"].astype(np.float64)},
        GOOD | {"w": GOOD["w"].astype(np.float16)},
        GOOD | {"w": GOOD["w"].astype(">f4")},
        GOOD | {"w": GOOD["w"].astype(object)},
        GOOD | {"w": GOOD["w"].tolist()},
        GOOD | {"w": np.ma.masked_invalid(np.full((4, 2), np.nan, dtype=np.float32))},
        GOOD | {"b": np.float32(0.2)},
    ],
    "shape": [
        GOOD | {"w": np.zeros((2,), dtype=np.float32)},
        GOOD | {"w": np.zeros((1, 2), dtype=np.float32)},
        GOOD | {"w": np.zeros((2, 4), dtype=np.float32)},
        GOOD | {"w": np.zeros((1, 4, 2), dtype=np.float32)},
        GOOD | {"w": np.zeros((), dtype=np.float32)},
        GOOD | {"b": np.zeros((1,), dtype=np.float32)},
    ],
    "nan": [
        GOOD | {"b": np.array(np.nan, dtype=np.float32)},
        GOOD | {"w": np.full((4, 2), np.inf, dtype=np.float32)},
        GOOD | {"w": np.full((4, 2), -np.inf, dtype=np.float32)},
    ],
    "norm": [
        GOOD | {"b": np.array(100.0, dtype=np.float32)},
        GOOD | {"w": np.full((4, 2), 3e38, dtype=np.float32)},
    ],
}


@pytest.mark.parametrize(("reason", "arrays"), [(reason, a) for reason, rows in BAD.items() for a in rows])
def test_a_bad_update_is_refused_for_its_reason(reason, arrays):
    with pytest.raises(UpdateError) as caught:
        check(arrays)
    assert caught.value.reason == reason


def test_old_rounds_and_used_nonces_are_refused():
    for kwargs, reason in [
        ({"update_round": 2}, "stale"),
        ({"update_round": 4}, "stale"),
        ({"nonce": "n", "seen": {"n"}}, "replay"),
        ({"nonce": ""}, "replay"),
    ]:
        with pytest.raises(UpdateError) as caught:
            check(GOOD, **kwargs)
        assert caught.value.reason == reason


@settings(deadline=None)
@given(
    values=hnp.arrays(np.float32, (4, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    bias=st.floats(-(2.0**100), 2.0**100, width=32),
)
def test_what_was_clipped_in_float32_passes_and_what_exceeds_the_bound_does_not(values, bias):
    exact = np.sqrt(sum(float(x) ** 2 for x in [*values.reshape(-1), bias]))
    factor = min(1.0, 1.0 / exact) if exact else 1.0
    clipped = {"w": (values * factor).astype(np.float32), "b": np.array(bias * factor, dtype=np.float32)}
    check(clipped)
    if exact > 1.00001:
        with pytest.raises(UpdateError):
            check({"w": values, "b": np.array(bias, dtype=np.float32)})


def test_a_cohort_sum_is_bounded_by_its_devices():
    def check_sum(scale, devices, dtype=np.float64, round=3):
        arrays = {name: np.asarray(array * scale / joint_norm(GOOD), dtype=dtype) for name, array in GOOD.items()}
        cohort = CohortSum(round=round, devices=devices, arrays=arrays)
        validate_cohort_sum(cohort, SCHEMA, round=3, clip_norm=0.5)

    check_sum(5.0, 10)
    check_sum(5.0, 10, np.float32)
    check_sum(0.0, 0)
    for arguments, reason in [
        ((5.001, 10), "norm"),
        ((1e-9, 0), "norm"),
        ((np.nan, 10), "nan"),
        ((1.0, 10, np.float16), "dtype"),
        ((1.0, 10, np.float64, 2), "stale"),
    ]:
        with pytest.raises(UpdateError) as caught:
            check_sum(*arguments)
        assert caught.value.reason == reason
