import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.tensors import pack, unpack

DTYPES = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<i4", "|i1", "<u4", "|u1"]).map(np.dtype)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))


@settings(deadline=None)
@given(arrays=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), ARRAYS, max_size=4))
def test_every_bit_comes_back(arrays):
    arrays.pop("__metadata__", None)
    found, header = unpack(pack(arrays, {"a": [1, "é"]}), what="test")
    assert header == {"a": [1, "é"]}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_views_with_strides_are_written_as_they_read():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    found, _ = unpack(pack({"t": base.T, "s": base[::2, 1::2]}, {}), what="test")
    np.testing.assert_array_equal(found["t"], base.T)
    np.testing.assert_array_equal(found["s"], base[::2, 1::2])


def test_the_format_is_plain_safetensors():
    array = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(load(pack({"a": array}, {"x": 1}))["a"], array)


def test_what_is_not_portable_or_not_ours_is_refused():
    for array in (np.array(["text"]), np.zeros(2, dtype=">f4"), np.zeros(2, dtype=bool), np.array([None])):
        with pytest.raises(FedrecallError, match="'a' has dtype"):
            pack({"a": array}, {})
    for data in (
        b"",
        b"\0" * 8,
        b"\xff" * 100,
        save({"a": np.zeros(2)}),
        save({"a": np.zeros(2, dtype=bool)}),
    ):
        with pytest.raises(CorruptArtefact, match="the thing"):
            unpack(data, what="the thing")
    with pytest.raises(CorruptArtefact, match="header"):
        unpack(save({"a": np.zeros(2)}, metadata={"fedrecall": "[]"}), what="the thing")
