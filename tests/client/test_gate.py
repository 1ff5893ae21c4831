import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedrecall.client.gate import let_out
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.errors import BudgetExhausted, PlanError, UpdateError
from fedrecall.protocol.tensors import pack

F32 = np.dtype(np.float32)
NAMES = ("item.id.weight", "transformer.out.weight", "transformer.out.bias")


def schema_of(arrays):
    return {name: (array.shape, F32) for name, array in arrays.items()}


def release(arrays, *, schema=None, clip_norm=1.0, round=3):
    schema = schema_of(arrays) if schema is None else schema
    return let_out(arrays, schema=schema, round=round, clip_norm=clip_norm, charge=lambda nonce: None)


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
    with pytest.raises(UpdateError, match="not on the allow-list"):
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


WIRE = (np.float16, np.float32, np.float64)
REAL = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "i1", "i4", "<i8", ">i8", "u1", "u8", "?")
KINDS = ("zero", "-zero", "tiny", "subnormal", "usual", "equal", "1e38", "1e300", "spike", "nan", "inf", "-inf", "bits")
LAYOUTS = ("plain", "strided", "reversed", "Fortran", "broadcast")


def values(rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an array of one kind of values, in ``dtype`` as far as it can hold them."""
    if kind == "bits" and dtype != "?":
        # Every bit pattern is a number, or one of the NaNs, signalling ones among them.
        return np.frombuffer(rng.bytes(math.prod(shape) * np.dtype(dtype).itemsize), dtype=dtype).reshape(shape)
    array = np.asarray(rng.standard_normal(shape))
    if kind in ("zero", "-zero", "equal"):
        array = np.full(shape, {"zero": 0.0, "-zero": -0.0, "equal": rng.uniform(-9, 9)}[kind])
    array = array * {"tiny": 1e-30, "1e38": 1e38, "1e300": 1e300}.get(kind, 1.0)
    with np.errstate(all="ignore"):
        array = np.asarray(array.astype(dtype))
        if kind == "subnormal" and array.dtype.kind == "f":
            array = np.asarray(np.finfo(dtype).smallest_subnormal * rng.integers(-9, 10, shape)).astype(dtype)
        if kind in ("spike", "nan", "inf", "-inf") and array.size and array.dtype.kind == "f":
            array.reshape(-1)[rng.integers(array.size)] = 1e300 if kind == "spike" else float(kind)
    return array


def laid_out(rng: np.random.Generator, array: np.ndarray, layout: str) -> np.ndarray:
    """Return equal values in another order of memory; ``broadcast`` repeats the first row."""
    if array.ndim == 0 or layout == "plain":
        return array
    if layout == "strided":
        return np.repeat(array, 2, axis=0)[::2]
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    if layout == "Fortran":
        return np.asfortranarray(array)
    return np.broadcast_to(array[:1], array.shape) if len(array) else array


def generated(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return arrays of any number, shape, kind of values, dtype and layout that a device may produce."""
    arrays, one_kind = {}, rng.choice(KINDS) if rng.random() < 0.5 else None
    for name in NAMES[: rng.integers(1, 4)]:
        shape = tuple(rng.integers(0, 5, rng.integers(0, 4)).tolist())
        array = values(rng, one_kind or rng.choice(KINDS), shape, rng.choice(REAL))
        arrays[name] = laid_out(rng, array, rng.choice(LAYOUTS))
    return arrays


def norm_over(arrays, clip_norm: float) -> float:
    """Return the joint norm over ``clip_norm``: scaled by an exact power of two, summed exactly."""
    fraction, exponent = math.frexp(clip_norm)
    with np.errstate(all="ignore"):
        wide = np.concatenate([np.zeros(1), *(a.astype(np.float64).ravel() for a in arrays.values())])
        return math.sqrt(math.fsum(np.square(np.ldexp(wide, -exponent)).tolist())) / fraction


def check(arrays: dict[str, np.ndarray], schema, clip_norm: float | None) -> float:
    """Check everything that holds for any update; return its norm over the clip."""
    before = {name: array.tobytes() for name, array in arrays.items()}
    update = release(arrays, schema=schema, clip_norm=clip_norm)
    assert {n: (a.shape, a.dtype) for n, a in update.arrays.items()} == schema
    for name, array in update.arrays.items():
        assert type(array) is np.ndarray and not array.flags.writeable and array.flags.c_contiguous
        assert np.isfinite(array).all() and not np.signbit(array[array == 0]).any()
        assert not np.shares_memory(array, arrays[name]) and arrays[name].tobytes() == before[name]
    found = norm_over(update.arrays, clip_norm or 1.0)
    if clip_norm is not None:
        assert found <= 1 + 1e-9
        small = norm_over(arrays, clip_norm) <= 1 and not any(a.dtype.kind not in "f" for a in arrays.values())
        if small and all(np.can_cast(a.dtype, schema[n][1]) for n, a in arrays.items()):
            assert all((update.arrays[n] == a).all() for n, a in arrays.items()), "short updates stay"
    return found


def test_clip_holds() -> None:
    """10,000 generated updates, as float16, float32, float64 and mixed: none raises, none leaves above the clip."""
    rng, worst, clipped, zeros = np.random.default_rng(0), 0.0, 0, 0
    for number in range(10_000):
        arrays, clip_norm = generated(rng), float(10.0 ** rng.uniform(-4, 3))
        if number % 50 == 0:
            clip_norm = float(rng.choice([1e-320, 1e-40, 1e-7, 1e30, 1e300]))
        kinds = (*WIRE[number % 4 : number % 4 + 1], *rng.choice(WIRE, len(arrays)))
        out = {n: kinds[0] if number % 4 < 3 else kinds[i] for i, n in enumerate(arrays)}
        found = check(arrays, {n: (a.shape, np.dtype(out[n])) for n, a in arrays.items()}, clip_norm)
        worst, clipped, zeros = max(worst, found), clipped + (found > 1 - 1e-5), zeros + (found == 0)
    assert clipped > 1000 and 1000 < zeros < 6000, "the generator reaches both sides of the clip"
    print(f"clip holds: 10,000 updates, {clipped} clipped, {zeros} zero, largest norm / C - 1 = {worst - 1:.1e}")


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
any_array = st.sampled_from(["<f2", "<f4", ">f4", "<f8", ">f8", "<i8", "u8", "?"]).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes)
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    arrays=st.dictionaries(st.sampled_from(NAMES), any_array, min_size=1),
    kind=st.sampled_from(WIRE),
    clip_norm=st.none() | st.floats(1e-30, 1e30),
)
def test_the_bound_holds_for_what_is_found_and_shrunk(arrays, kind, clip_norm) -> None:
    check(arrays, {n: (a.shape, np.dtype(kind)) for n, a in arrays.items()}, clip_norm)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    "array",
    [
        np.array([1, None], dtype=object),
        np.array([1.0, 2.0], dtype=complex),
        np.zeros(2, dtype=[("item", "i4"), ("time", "i8")]),
        np.array(["1.5", "2.5"]),
        np.array([b"1", b"2"]),
        np.array([1, 2], dtype="M8[s]"),
        np.array([1, 2], dtype=np.longdouble),
        np.ma.masked_array([0.1, 0.2], mask=[False, True]),
        np.array([0.1, 0.2]).view(np.recarray),
        [0.1, 0.2],
        None,
    ],
    ids=lambda a: f"{type(a).__name__} {getattr(a, 'dtype', '')}",
)
def test_what_is_no_plain_array_of_real_numbers_is_refused(array, clip_norm: float | None) -> None:
    with pytest.raises(UpdateError, match="make it"):
        release({NAMES[0]: array}, schema={NAMES[0]: ((2,), F32)}, clip_norm=clip_norm)


@pytest.mark.parametrize("dtype", ["i8", "i4", "?", ">f4", ">f8", "c16", "g", "O", "U4"])
def test_a_server_that_asks_for_anything_but_floats_is_refused(dtype: str) -> None:
    """An integer cannot be rounded towards zero and hold a clip; NaN and infinity become any integer."""
    with pytest.raises(UpdateError, match="ask for float16"):
        release({NAMES[0]: np.zeros(2)}, schema={NAMES[0]: ((2,), np.dtype(dtype))})


@pytest.mark.parametrize("names", [{1: 0}, {None: 0}, {NAMES[0]: 0, 1: 0}])
def test_a_name_that_is_no_text_is_refused(names) -> None:
    with pytest.raises(UpdateError, match="not on the allow-list"):
        release({name: np.zeros(2) for name in names})
    with pytest.raises(UpdateError, match="asks for"):
        release({name: np.zeros(2) for name in names}, schema={NAMES[1]: ((2,), F32)})


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(clip_norm: float) -> None:
    with pytest.raises(PlanError, match="clip_norm"):
        release({NAMES[0]: np.zeros(2)}, clip_norm=clip_norm)


@pytest.mark.parametrize("clip_norm", [None, 10.0])
def test_what_left_cannot_be_changed_and_hides_no_order(clip_norm: float | None) -> None:
    arrays = {name: np.ones(2, dtype=np.float32) for name in reversed(NAMES)}
    schema = {name: ((2,), F32) for name in NAMES}
    update = release(arrays, schema=schema, clip_norm=clip_norm)
    assert tuple(update.arrays) == NAMES, "the order of the round, not of the device"
    arrays[NAMES[0]][:] = 7
    assert (update.arrays[NAMES[0]] == 1).all()
    with pytest.raises(TypeError):
        update.arrays["user.vector.weight"] = arrays[NAMES[0]]
    with pytest.raises(ValueError, match="read-only"):
        update.arrays[NAMES[0]][0] = 7


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_number_without_dimensions_leaves_as_an_array(clip_norm: float | None) -> None:
    """numpy turns a 0-d array into a scalar under arithmetic, such as a minus."""
    update = release({NAMES[0]: -np.array(0.5)}, schema={NAMES[0]: ((), F32)}, clip_norm=clip_norm)
    assert update.arrays[NAMES[0]].shape == () and float(update.arrays[NAMES[0]]) == -0.5


def test_a_half_precision_answer_stays_inside_the_bound() -> None:
    """A norm of 1 in float16 is off by up to 5e-4 an entry: what leaves must not be rounded up past the clip."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        array = (rng.standard_normal(50) * 10).astype(np.float16)
        update = release({NAMES[0]: array}, schema={NAMES[0]: ((50,), np.dtype(np.float16))}, round=0)
        assert norm(update) <= 1 + 1e-9


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


@pytest.mark.parametrize(
    ("said", "leaves"), [(0.5, 0.5), (1e9, 0.5), (-0.5, -0.5), (0.0, -0.5), (math.nan, -0.5), (-math.inf, -0.5)]
)
def test_the_count_within_the_clip_leaves_as_one_of_two_values(said: float, leaves: float) -> None:
    arrays = {WITHIN_CLIP: np.asarray(said, dtype=np.float32), NAMES[0]: np.full(4, 3.0, dtype=np.float32)}
    update = release(arrays, clip_norm=1.0)
    assert list(update.arrays) == list(arrays)
    assert update.arrays[WITHIN_CLIP] == leaves and update.arrays[WITHIN_CLIP].dtype == np.float32
    # The count has a clip of its own and takes nothing of the weights'.
    assert norm_over({NAMES[0]: update.arrays[NAMES[0]]}, 1.0) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("shape", "clip_norm"), [((2,), 1.0), ((1,), 1.0), ((), None)])
def test_many_counts_or_one_beside_noised_weights_are_refused(shape: tuple[int, ...], clip_norm: float | None) -> None:
    """Each of two counts would move the sum by 1/2, and one beside weights noised by the device would be bare."""
    with pytest.raises(UpdateError, match="no noise of its own"):
        release({WITHIN_CLIP: np.zeros(shape), NAMES[0]: np.zeros(4)}, clip_norm=clip_norm)


def test_nothing_leaves_that_was_not_charged_under_its_own_nonce() -> None:
    arrays, charged = {NAMES[0]: np.ones(2, dtype=np.float32)}, []
    leaving = let_out(arrays, schema=schema_of(arrays), round=3, clip_norm=1.0, charge=charged.append)
    assert charged == [leaving.nonce]

    def refuse(nonce: str) -> None:
        raise BudgetExhausted("spent")

    with pytest.raises(BudgetExhausted):
        let_out(arrays, schema=schema_of(arrays), round=3, clip_norm=1.0, charge=refuse)
    with pytest.raises(UpdateError):  # a bug on the device is found before it costs anything
        let_out(arrays, schema={}, round=3, clip_norm=1.0, charge=charged.append)
    assert len(charged) == 1
