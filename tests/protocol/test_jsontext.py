"""Strict JSON: what comes out is read back the same by the standard library; the rest is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.jsontext import dumps

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_plain_data_survives_the_round_trip_on_one_ascii_line(data):
    text = dumps(data)
    assert "\n" not in text and text.isascii()
    assert json.loads(text, parse_constant=pytest.fail) == data


def test_numpy_scalars_and_tuples_become_plain_and_keys_keep_their_order():
    data = {"b": np.float64(0.5), "a": (np.int64(3), np.bool_(True)), "f": np.float32(0.25)}
    assert dumps(data) == '{"b": 0.5, "a": [3, true], "f": 0.25}'
    assert dumps({"a": [1]}, indent=1) == '{\n "a": [\n  1\n ]\n}'


@pytest.mark.parametrize(
    "bad",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
        np.zeros(2),
        {1},
        Path("x"),
        b"x",
        1j,
        {3: 1},
    ],
)
def test_what_json_cannot_hold_is_refused_and_its_place_is_named(bad):
    with pytest.raises(FedrecallError, match=r"\$\.history\[1\]\.loss"):
        dumps({"history": [{}, {"loss": bad}]})
