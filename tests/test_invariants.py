"""Invariants of the privacy page, a named test a row, each printing what it measured: noise, coins, accountant."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.accounting import cross_check
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.simulations.config import parse_config
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import World

from .client.training.engine_contract import Case, make_world
from .privacy.mechanisms.test_sampler import chi2_binomial_p

TESTS = Path(__file__).resolve().parent
ROWS = {
    "nothing private leaves": "test_nothing_private_leaves.py::test_nothing_private_leaves",
    "noise is there": "test_invariants.py::test_noise_is_there",
    "clip holds": "client/test_gate.py::test_clip_holds",
    "sampler is the accountant's": "test_invariants.py::test_sampler_is_the_accountants",
    "accountant is right": "test_invariants.py::test_accountant_is_right",
    "ledger never forgets": "privacy/ledger/ledger_contract.py::test_a_thousand_kills_never_forget_a_release",
    "logs are clean": "test_nothing_private_leaves.py::test_logs_are_clean",
}
"""Where each row of the table is held."""


@pytest.mark.parametrize("row", ROWS)
def test_each_invariant_has_a_test_that_states_its_figure(row: str) -> None:
    file, name = ROWS[row].split("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    (test,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    assert any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(test))


# Noise is there.

VALUES, SIGMA, CLIP = 100_000, 2.0, 0.25


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What was measured on two independent draws of 100,000 values."""

    ratio: float
    ks_p: float
    lag: float
    across: float

    def passes(self) -> bool:
        """Whether this is the planned noise.

        The scale's standard error is 0.0022, so a right one fails once in 10^6 tries; a correlation's is 0.0032, so
        once in 10^9; Kolmogorov-Smirnov fails once in 10,000. A scale off by 2 % is 3.9 errors beyond the bound
        (power 0.9999); x 2/3 and x 3/2 are 145 and 104 beyond (power 1).
        """
        return 0.989 <= self.ratio <= 1.011 and self.ks_p > 1e-4 and max(abs(self.lag), abs(self.across)) < 0.02


def measure(one: np.ndarray, other: np.ndarray, std: float) -> Noise:
    both = [np.asarray(x, dtype=np.float64).ravel() for x in (one, other)]
    return Noise(
        ratio=float(np.std(both[0]) / std),
        ks_p=float(stats.kstest(both[0] / std, "norm").pvalue),
        lag=float(np.corrcoef(both[0][:-1], both[0][1:])[0, 1]),
        across=float(np.corrcoef(both[0], both[1])[0, 1]),
    )


def mechanism_of(multiplier: float) -> Mechanism:
    return Mechanism(name="rounds", clip_norm=CLIP, noise_multiplier=multiplier, steps=10)


def by_server(multiplier: float, source: Callable[[int], NoiseSource], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return two rounds' noised sums of a signal that is zero."""
    zero = {"item.id.weight": np.zeros((VALUES // 10, 10))}
    one, other = (gaussian_sum(zero, mechanism_of(multiplier), source(round))["item.id.weight"] for round in range(2))
    return one, other


def by_devices(multiplier: float, source: Callable[[int], NoiseSource], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the updates of two devices that have no events, charged and as they leave the gate."""
    simulated = source(0).simulated
    shape = ModelShape(
        n_items=VALUES // 10, n_features=0, n_types=1, dim=10, window=3, blocks=0, heads=2, hidden=4, user_dim=2,
        user_hidden=2,
    )  # fmt: skip
    empty = EventStore.from_columns(users=np.zeros(0), items=np.zeros(0), n_users=1, n_items=shape.n_items)
    trainer = Trainer(
        shape=shape,
        features=None,
        local=LocalConfig(negatives=4, blocks=2),
        plan=Plan(
            unit="interaction",
            trust="local",
            delta=1e-5,
            devices=2,
            mechanisms=(mechanism_of(multiplier),),
            simulated=simulated,
        ),
        trained=(ITEM_ID,),
        seed=0,
    )
    arrays = {name: w.numpy() for name, w in initial_arrays(shape, 0).items() if not name.startswith("user.")}
    budget = Budget(epsilon=50.0, delta=1e-5, unit="interaction")
    devices = (
        Device(
            store=empty,
            key=key,
            tower={},
            ledger=DeviceLedger.create(folder / f"{multiplier}-{key}.jsonl", budget, simulated=simulated),
        )
        for key in range(2)
    )
    one, other = (trainer.update(0, arrays, d, source(7 + d.key)).arrays[ITEM_ID] for d in devices)
    return one, other


@pytest.fixture(params=["secure", "seeded"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], NoiseSource]:
    """Return a source of noise for each device or round, as one does."""
    if request.param == "seeded":
        return lambda number: SeededNoise(3, "noise is there", number)
    # The real cipher, keyed by a fixed stream so that a statistical test cannot fail by chance.
    monkeypatch.setattr("fedrecall.privacy.mechanisms.noise.os.urandom", np.random.Generator(np.random.Philox(8)).bytes)
    return lambda number: SecureNoise()


@pytest.mark.parametrize("add", [by_server, by_devices])
def test_noise_is_there(
    add: Callable[..., tuple[np.ndarray, np.ndarray]],
    source: Callable[[int], NoiseSource],
    tmp_path: Path,
) -> None:
    """Zero signal through the real mechanism under both trust models; wrong scales are refused."""
    planned = SIGMA * CLIP
    found = measure(*add(SIGMA, source, tmp_path / "right"), planned)
    assert found.passes(), found
    for wrong in (2 / 3, 0.98, 1.02, 3 / 2):
        assert not measure(*add(SIGMA * wrong, source, tmp_path), planned).passes(), wrong
    one, other = add(SIGMA, source, tmp_path)
    assert not measure(one, one, planned).passes(), "the same noise twice"
    assert not measure(np.where(np.arange(one.size).reshape(one.shape) % 4, one, 0), other, planned).passes(), "gaps"
    print(f"\nnoise is there: {add.__name__}, {VALUES:,} values, measured / planned sigma {found.ratio:.4f}, ", end="")
    print(f"KS p {found.ks_p:.3f}, lag-1 {found.lag:+.4f}, across {found.across:+.4f}")


# The accountant is right.

ANCHORS = [
    (0.01, 1.0, 1000, 1e-5, 1.8282, 2.1014),
    (0.001, 0.6, 2000, 1e-6, 2.3549, 3.3133),
    (0.05, 1.0, 200, 1e-6, 5.4859, 6.0971),
    (1.0, 10.0, 100, 1e-6, 4.8866, 5.2215),
]


def test_accountant_is_right() -> None:
    """The published anchors: sample rate, sigma, steps, delta, epsilon by PLD and by RDP."""
    worst = 0.0
    for rate, sigma, steps, delta, pld, rdp in ANCHORS:
        rounds = Mechanism(
            name="rounds",
            sampling="poisson" if rate < 1 else "everyone",
            sample_rate=rate,
            clip_norm=1.0,
            noise_multiplier=sigma,
            steps=steps,
        )
        plan = Plan(unit="user", trust="central", delta=delta, devices=1000, mechanisms=(rounds,))
        found = cross_check(plan)
        assert found["pld"] is not None and found["rdp"] is not None
        assert pld - 1e-3 <= found["pld"] <= found["rdp"]
        worst = max(worst, abs(found["pld"] - pld), abs(found["rdp"] - rdp))
    assert worst < 1e-3
    print(f"\naccountant is right: {len(ANCHORS)} anchors by PLD and RDP, largest deviation {worst:.1e}")


# The sampler is the accountant's.

DEVICES, RATE, ROUNDS = 80, 0.25, 300


def test_sampler_is_the_accountants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rounds of the real loop. Power, measured below: a rate 10 % off 0.99, a fixed cohort 1."""
    cohorts: list[np.ndarray] = []
    real = Cohort.collect

    def recorded(self: Cohort, round: int, arrays: Arrays, users: np.ndarray, *rest: Any, **named: Any) -> CohortSum:
        cohorts.append(users)
        return real(self, round, arrays, users, *rest, **named)

    monkeypatch.setattr(Cohort, "collect", recorded)
    world = make_world(Case(histories=tuple([u % 12, 1] for u in range(DEVICES)), blocks=0, features=0, types=1))
    config = parse_config(
        {
            "threads": 1,
            "start": {"enabled": False},
            "privacy": {"epsilon": "null"},
            "rounds": {"count": ROUNDS, "cohort": RATE * DEVICES, "train": ["transformer.out."]},
            "local": {"negatives": 2},
            "server": {"checkpoint_every": ROUNDS},
        }
    )
    plan = plan_for(config, DEVICES)
    assert plan.mechanism("rounds").sample_rate == RATE and plan.mechanism("rounds").steps == ROUNDS
    training = World(config=config, plan=plan, store=world.store, features=None, shape=world.shape)
    train(training, tmp_path, resume=False, validate=None, progress=lambda *_: None)

    joined = np.zeros((ROUNDS, DEVICES), dtype=bool)
    for row, cohort in zip(joined, cohorts, strict=True):
        row[cohort] = True
        assert row.sum() == len(cohort)
    sizes = joined.sum(axis=1)
    found = chi2_binomial_p(sizes, DEVICES, RATE)
    assert found > 1e-4
    assert chi2_binomial_p(sizes, DEVICES, RATE * 1.1) < 1e-4
    assert chi2_binomial_p(np.full(ROUNDS, round(DEVICES * RATE)), DEVICES, RATE) < 1e-4
    each = (joined.sum(axis=0) - ROUNDS * RATE) ** 2 / (ROUNDS * RATE * (1 - RATE))
    assert stats.chi2.sf(each.sum(), DEVICES) > 1e-4
    together = np.corrcoef(joined.T)[np.triu_indices(DEVICES, 1)] * np.sqrt(ROUNDS)
    assert stats.kstest(together, "norm").pvalue > 1e-4
    again = [np.corrcoef(joined[1:, u], joined[:-1, u])[0, 1] * np.sqrt(ROUNDS) for u in range(DEVICES)]
    assert stats.kstest(again, "norm").pvalue > 1e-4

    rng = np.random.default_rng(4)
    wrong = [rng.binomial(DEVICES, RATE * 1.1, ROUNDS) for _ in range(200)]
    right = [rng.binomial(DEVICES, RATE, ROUNDS) for _ in range(200)]
    power = np.mean([chi2_binomial_p(s, DEVICES, RATE) < 1e-4 for s in wrong])
    assert power > 0.99
    assert not any(chi2_binomial_p(s, DEVICES, RATE) < 1e-4 for s in right)
    print(f"\nsampler is the accountant's: {ROUNDS} rounds of {DEVICES} devices at rate {RATE}, chi-square p ", end="")
    print(f"{found:.3f}; a rate 10 % off is refused with power {power:.3f}, a fixed cohort always")
