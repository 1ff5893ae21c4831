import ast
import math
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.gate import let_out
from fedrecall.protocol.errors import FedrecallError, UpdateError
from fedrecall.protocol.tensors import pack

CLIENT = Path(__file__).resolve().parents[2] / "client"
F32 = np.dtype(np.float32)
NAMES = ("item.id.weight", "transformer.out.weight", "transformer.out.bias")


def schema_of(arrays):
    return {name: (array.shape, F32) for name, array in arrays.items()}


def release(arrays, *, schema=None, clip_norm=1.0, round=3):
    return let_out(arrays, schema=schema_of(arrays) if schema is None else schema, round=round, clip_norm=clip_norm)


def norm(update) -> float:
    """Return the joint norm, with exact summation."""
    return math.sqrt(math.fsum(float(x) ** 2 for a in update.arrays.values() for x in a.ravel()))


def test_what_is_asked_for_leaves_and_nothing_else() -> None:
    arrays = {name: np.full((2, 2), 0.1, dtype=np.float32) for name in NAMES}
    update = release(arrays)
    assert set(vars(update)) == {"round", "nonce", "arrays"}
    assert update.round == 3 and set(update.arrays) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(update.arrays[name], arrays[name])


@pytest.mark.parametrize("name", ["user.vector.weight", "user.out.bias"])
def test_a_private_weight_is_refused_even_when_the_server_asks_for_it(name: str) -> None:
    arrays = {NAMES[0]: np.zeros(2, dtype=np.float32), name: np.zeros(2, dtype=np.float32)}
    with pytest.raises(UpdateError, match="private"):
        release(arrays)


@pytest.mark.parametrize("name", ["loss", "events", "popularity2", "count", "core.item.id.weight"])
def test_a_name_on_no_list_is_refused(name: str) -> None:
    with pytest.raises(FedrecallError, match="neither list"):
        release({name: np.zeros(2, dtype=np.float32)})


@pytest.mark.parametrize("name", ["popularity", "second_moments"])
def test_declared_statistics_may_leave(name: str) -> None:
    assert norm(release({name: np.full(4, 9.0)})) == pytest.approx(1.0)


def test_extra_missing_and_misshapen_arrays_are_refused() -> None:
    arrays = {name: np.zeros(2, dtype=np.float32) for name in NAMES}
    schema = schema_of(arrays)
    with pytest.raises(UpdateError, match="asks for"):
        release(arrays | {"item.features.weight": np.zeros(2)}, schema=schema)
    with pytest.raises(UpdateError, match="asks for"):
        release({name: arrays[name] for name in NAMES[1:]}, schema=schema)
    for shape in ((3,), (2, 1), (), (1, 2)):
        with pytest.raises(UpdateError, match="shape"):
            release(arrays | {NAMES[0]: np.zeros(shape)}, schema=schema)


@pytest.mark.parametrize(
    ("bad", "clip_norm"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (np.nan, None), (np.inf, None), (1e39, None)]
)
def test_an_invalid_result_becomes_zeros_of_the_same_size(bad: float, clip_norm: float | None) -> None:
    arrays = {NAMES[0]: np.array([1.0, bad]), NAMES[1]: np.array([0.5])}
    update = release(arrays, clip_norm=clip_norm)
    assert all(not array.any() and array.dtype == F32 for array in update.arrays.values())
    valid = release({name: np.ones(array.shape) for name, array in arrays.items()})
    assert len(pack(update.arrays, {})) == len(pack(valid.arrays, {}))


def generated(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return arrays of any shape, scale and dtype that a device may produce."""
    arrays = {}
    for name in NAMES[: rng.integers(1, 4)]:
        shape = tuple(rng.integers(0, 5, rng.integers(0, 4)).tolist())
        kind = rng.choice(["zero", "tiny", "usual", "huge", "spike", "bad"], p=[0.1, 0.15, 0.4, 0.15, 0.15, 0.05])
        scale = {"zero": 0.0, "tiny": 1e-30, "usual": 1.0, "huge": 1e30, "spike": 1.0, "bad": 1.0}[kind]
        array = np.asarray(rng.standard_normal(shape) * scale)
        if array.size and kind in ("spike", "bad"):
            array.reshape(-1)[rng.integers(array.size)] = 1e300 if kind == "spike" else rng.choice([np.nan, np.inf])
        dtype = rng.choice(np.array([np.float16, np.float32, np.float64]))
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(dtype)
    return arrays


def test_the_bound_holds_for_whatever_a_device_computes() -> None:
    rng, clipped, zeros = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        arrays, clip_norm = generated(rng), float(10.0 ** rng.uniform(-4, 3))
        dtype = np.dtype(rng.choice(np.array([np.float32, np.float64])))
        update = release(arrays, schema={n: (a.shape, dtype) for n, a in arrays.items()}, clip_norm=clip_norm)
        found = norm(update)
        assert found <= clip_norm * (1 + 1e-6)
        assert {n: (a.shape, a.dtype) for n, a in update.arrays.items()} == {
            n: (a.shape, dtype) for n, a in arrays.items()
        }
        clipped += found > clip_norm * (1 - 1e-5)
        zeros += found == 0
    assert clipped > 500 and 100 < zeros < 1500, "the generator reaches both sides of the clip"


def test_a_half_precision_answer_stays_inside_the_bound() -> None:
    """A norm of 1 in float16 is off by up to 5e-4 an entry: what leaves must not be rounded up past the clip."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        array = (rng.standard_normal(50) * 10).astype(np.float16)
        update = let_out({NAMES[0]: array}, schema={NAMES[0]: ((50,), np.dtype(np.float16))}, round=0, clip_norm=1.0)
        assert norm(update) <= 1 + 1e-6


def test_a_short_update_is_not_scaled() -> None:
    array = np.array([0.3, -0.4], dtype=np.float32)
    np.testing.assert_array_equal(release({NAMES[0]: array}, clip_norm=1.0).arrays[NAMES[0]], array)
    np.testing.assert_array_equal(release({NAMES[0]: 100 * array}, clip_norm=None).arrays[NAMES[0]], 100 * array)


def test_size_and_nonce_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    updates = [
        release({NAMES[0]: array.reshape(8, 4)})
        for array in (np.zeros(32), rng.standard_normal(32), np.full(32, np.nan), np.eye(32)[0])
    ]
    assert len({len(pack(u.arrays, {"round": u.round, "nonce": u.nonce})) for u in updates}) == 1
    nonces = {u.nonce for u in updates} | {release({NAMES[0]: np.zeros(1)}).nonce for _ in range(100)}
    assert len(nonces) == 104 and {len(n) for n in nonces} == {32}


def test_the_input_is_left_alone() -> None:
    array = np.array([3.0, 4.0])
    release({NAMES[0]: array})
    np.testing.assert_array_equal(array, [3.0, 4.0])


def constructors(source: str) -> list[int]:
    """Return the lines on which an Update is made, by name, by attribute, or by ``replace`` of one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name == "Update":
                found.append(node.lineno)
        if isinstance(node, ast.ImportFrom):
            found += [node.lineno for alias in node.names if alias.name == "Update" and alias.asname]
    return found


def test_no_other_file_of_the_client_makes_an_update() -> None:
    makers = {path.name for path in CLIENT.rglob("*.py") if constructors(path.read_text(encoding="utf-8"))}
    assert makers == {"gate.py"}
    assert constructors("records.Update(round=1)") and constructors(
        "from fedrecall.protocol.records import Update as U"
    )
