import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedrecall.protocol.errors import ConfigError, FedrecallError, UpdateError
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.optimiser import AverageState, average, init, learning_rate, step

SHAPES = {"item.table": (7, 3), "transformer.w": (4,), "scalar": (), "empty": (0, 2)}


def arrays_of(rng, dtype=np.float64):
    return {name: np.asarray(rng.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}


def torch_optimiser(config, weights):
    if config.optimiser == "fedadam":
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(weights, lr=config.learning_rate, betas=betas, eps=config.adaptivity)
    momentum = config.momentum if config.optimiser == "fedavgm" else 0.0
    return torch.optim.SGD(weights, lr=config.learning_rate, momentum=momentum)


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(optimiser="sgd", learning_rate=1.0),
        ServerConfig(optimiser="fedavgm", learning_rate=0.3, momentum=0.8),
        ServerConfig(optimiser="fedadam", learning_rate=0.02, beta1=0.7, beta2=0.95, adaptivity=1e-3),
    ],
)
def test_steps_are_torchs_to_1e_12(config):
    rng = np.random.default_rng(1)
    arrays = arrays_of(rng)
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    reference = torch_optimiser(config, list(weights.values()))
    state = init(config, arrays)
    for _ in range(25):
        update = arrays_of(rng)
        for name, weight in weights.items():
            weight.grad = torch.tensor(-update[name])
        reference.step()
        arrays, state = step(config, state, arrays, update, rounds=25)
        for name, weight in weights.items():
            assert arrays[name].shape == SHAPES[name]
            np.testing.assert_allclose(arrays[name], weight.detach().numpy(), rtol=0, atol=1e-12)
    assert state.step == 25


@pytest.mark.parametrize("kind", ["sgd", "fedavgm", "fedadam"])
def test_a_step_changes_no_argument_and_keeps_the_dtype(kind):
    rng = np.random.default_rng(2)
    config = ServerConfig(optimiser=kind)
    arrays, update = arrays_of(rng, np.float32), arrays_of(rng)
    state = init(config, arrays)
    arrays, state = step(config, state, arrays, update, rounds=9)
    for frozen in (arrays, update, state.first, state.second):
        for array in frozen.values():
            array.flags.writeable = False
    once, after = step(config, state, arrays, update, rounds=9)
    twice, _ = step(config, state, arrays, update, rounds=9)
    for name in SHAPES:
        assert isinstance(once[name], np.ndarray) and once[name].dtype == np.float32
        np.testing.assert_array_equal(once[name], twice[name])
        for group in (after.first, after.second):
            assert not group or (isinstance(group[name], np.ndarray) and group[name].dtype == np.float32)
    assert not np.array_equal(once["item.table"], arrays["item.table"])


def test_learning_rate_scales_act_by_the_longest_prefix():
    arrays = arrays_of(np.random.default_rng(3))
    ones = {name: np.ones_like(array) for name, array in arrays.items()}
    scales = {"item.": 0.5, "item.table": 0.25, "transformer.": 0.0}
    config = ServerConfig(optimiser="sgd", learning_rate=2.0, learning_rate_scales=scales)
    moved, _ = step(config, init(config, arrays), arrays, ones, rounds=1)
    for name, distance in {"item.table": 0.5, "transformer.w": 0.0, "scalar": 2.0}.items():
        np.testing.assert_allclose(moved[name] - arrays[name], distance, atol=1e-15)
    with pytest.raises(ConfigError, match="user"):
        init(ServerConfig(learning_rate_scales={"user.": 1.0}), arrays)


def test_schedules():
    def rates(**settings):
        config = ServerConfig(learning_rate=2.0, **settings)
        return [learning_rate(config, i, rounds=6) for i in range(8)]

    assert rates() == [2.0] * 8
    assert rates(warmup_rounds=4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    np.testing.assert_allclose(rates(schedule="linear", warmup_rounds=2), [1, 2, 2, 1.5, 1, 0.5, 0, 0])
    cosine = [0.25 + 0.75 * (1 + np.cos(np.pi * min(i, 6) / 6)) / 2 for i in range(8)]
    np.testing.assert_allclose(rates(schedule="cosine", final_share=0.25), 2 * np.array(cosine))
    assert rates(schedule="linear", warmup_rounds=6)[-1] == 0.0


def test_averages_against_their_definitions():
    rng = np.random.default_rng(4)
    path = [arrays_of(rng) for _ in range(10)]

    def run(**settings):
        state = None
        for i, arrays in enumerate(path, start=1):
            state = average(ServerConfig(**settings), state, arrays, step=i, rounds=10)
        return state

    last, tail, ema = run(), run(average="tail", tail_share=0.35), run(average="ema", ema_decay=0.8)
    assert isinstance(tail, AverageState) and (last.count, tail.count, ema.count) == (1, 4, 10)
    for name, shape in SHAPES.items():
        stack = np.stack([arrays[name] for arrays in path])
        np.testing.assert_array_equal(last.arrays[name], path[-1][name])
        np.testing.assert_allclose(tail.arrays[name], stack[6:].mean(axis=0), atol=1e-12)
        assert tail.arrays[name].shape == shape
        expected = stack[:5].mean(axis=0)
        for later in stack[5:]:
            expected = 0.8 * expected + 0.2 * later
        np.testing.assert_allclose(ema.arrays[name], expected, atol=1e-12)
    whole = run(average="tail", tail_share=1.0)
    assert whole.count == 10


def test_the_model_is_released_until_the_tail_begins():
    arrays = arrays_of(np.random.default_rng(5))
    config = ServerConfig(average="tail", tail_share=0.2)
    state = average(config, None, arrays, step=1, rounds=10)
    other = arrays_of(np.random.default_rng(6))
    state = average(config, state, other, step=2, rounds=10)
    np.testing.assert_array_equal(state.arrays["item.table"], other["item.table"])


def test_what_would_spoil_the_model_is_refused():
    config = ServerConfig()
    arrays = arrays_of(np.random.default_rng(7))
    state = init(config, arrays)
    for name, bad, words in [
        ("scalar", np.array(np.nan), "not finite"),
        ("item.table", np.ones((1, 3)), "shape"),
        ("more", np.ones(1), "arrays"),
    ]:
        with pytest.raises(UpdateError, match=words):
            step(config, state, arrays, arrays | {name: bad}, rounds=1)
    with pytest.raises(FedrecallError, match="int64"):
        init(config, {"a": np.arange(3)})


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"momentum": 1.0},
        {"beta2": float("nan")},
        {"average": "mean"},
        {"tail_share": 0.0},
        {"learning_rate_scales": {"a": -1.0}},
        {"keep_checkpoints": 0},
        {"learning_rat": 1.0},
    ],
)
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(ValidationError):
        ServerConfig(**settings)
    with pytest.raises(ValidationError):
        ServerConfig().momentum = 0.5
