"""A run refuses to start when it would do anything else than what the accountant was told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.correlated import CorrelatedNoise, coefficients
from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import CohortSum, Update
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.rounds import Environment, run_rounds, start_state
from fedrecall.server.training.sampling import Sampler

ARRAYS = {"item.id.weight": np.zeros((3, 2), dtype=np.float32)}
SUBSETS = {"sampling": "fixed_size", "sample_rate": 0.25, "adjacency": "replace_one"}
TURNS = {
    "sampling": "limited",
    "sample_rate": 0.25,
    "participations": 1,
    "min_gap": 4,
    "adjacency": "zero_out",
}


def plan_of(trust: str = "central", *, simulated: bool = True, colluders: int = 0, **options: object) -> Plan:
    rounds = {"name": "rounds", "clip_norm": 1.0, "noise_multiplier": 1.0, "steps": 3} | options
    return Plan(
        unit="user",
        trust=trust,
        delta=1e-5,
        devices=40,
        mechanisms=(Mechanism(**rounds),),
        simulated=simulated,
        colluders=colluders,
    )


class Attempt:
    """One try to run a plan over an environment that differs from it, and what happened."""

    def __init__(self, folder: Path, plan: Plan, *, answer: int | None = None, **changes: object) -> None:
        mechanism = plan.mechanism("rounds")
        self.asked = 0
        self.answer = answer
        self.path = folder / "ledger.jsonl"
        self.plan = plan
        self.seen: list[np.ndarray] = []
        whole = {
            "collect": self.collect,
            "sampler": Sampler.of(mechanism, plan.devices, lambda round: np.random.default_rng(round)),
            "noise": lambda round: SeededNoise(0, round),
            "key": str,
        }
        self.environment = Environment(**(whole | changes))

    def collect(
        self, round: int, arrays: object, cohort: np.ndarray, clip_norm: float | None
    ) -> CohortSum | list[Update]:
        self.asked += 1
        devices = len(cohort) if self.answer is None else self.answer
        if not self.plan.simulated:
            updates = {n: np.full(a.shape, 0.1, dtype=a.dtype) for n, a in ARRAYS.items()}
            return [Update(round=round, nonce=f"{round}-{d}", arrays=updates) for d in range(devices)]
        sums = {n: np.full(a.shape, 0.5 if devices else 0.0) for n, a in ARRAYS.items()}
        return CohortSum(round=round, devices=devices, arrays=sums)

    def run(self) -> dict[str, np.ndarray]:
        state = start_state(ServerConfig(optimiser="sgd", learning_rate=1.0), ARRAYS, tuple(ARRAYS), 1.0)
        final = run_rounds(
            state,
            self.plan,
            self.environment,
            config=ServerConfig(optimiser="sgd", learning_rate=1.0),
            ledger=Ledger.create(self.path, self.plan),
            on_round=lambda state: self.seen.append(state.arrays["item.id.weight"]),
        )
        assert final.round == self.plan.mechanism("rounds").steps
        return dict(final.arrays)

    def charges(self) -> int:
        return self.path.read_bytes().count(b"\n") - 1

    def refused(self, match: str) -> None:
        """Nothing was collected, and nothing was charged."""
        with pytest.raises(PlanError, match=match):
            self.run()
        assert self.asked == 0 and self.charges() == 0


SAMPLERS = {
    "everyone": {},
    "poisson": {"sampling": "poisson", "sample_rate": 0.25},
    "fixed_size": SUBSETS,
    "limited": TURNS,
}


@pytest.mark.parametrize("does", SAMPLERS)
@pytest.mark.parametrize("stated", SAMPLERS)
def test_a_sampler_that_the_accountant_was_not_told_of_refuses_to_start(stated: str, does: str, tmp_path: Path) -> None:
    """A fixed cohort sold as Poisson is one of the sixteen pairs."""
    mechanism = Mechanism(name="rounds", steps=3, **SAMPLERS[does])
    sampler = Sampler.of(mechanism, 40, lambda round: np.random.default_rng(round))
    attempt = Attempt(tmp_path, plan_of(**SAMPLERS[stated]), sampler=sampler)
    if does == stated:
        attempt.run()
        assert attempt.asked == attempt.charges() == 3
    else:
        attempt.refused("the sampler's sampling")


@pytest.mark.parametrize("field", ["sample_rate", "devices"])
def test_another_rate_or_population_refuses_to_start(field: str, tmp_path: Path) -> None:
    plan = plan_of(**SAMPLERS["poisson"])
    other = Attempt(tmp_path, plan).environment.sampler
    value = {"sample_rate": 0.2501, "devices": 41}[field]
    Attempt(tmp_path, plan, sampler=replace(other, **{field: value})).refused(f"the sampler's {field} is {value}")


def test_known_noise_outside_a_simulation_refuses_to_start_and_so_does_unknown_noise_inside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Attempt(tmp_path / "a", plan_of(simulated=False)).refused("seeded")
    Attempt(tmp_path / "b", plan_of(), noise=lambda round: SecureNoise()).refused("cannot be replayed")
    secure = Attempt(tmp_path, plan_of(simulated=False), noise=lambda round: SecureNoise())
    secure.run()
    assert secure.charges() == 3


def test_secure_aggregation_is_accounted_and_refused(tmp_path: Path) -> None:
    Attempt(tmp_path, plan_of("distributed", min_survivors=30, colluders=5)).refused("has not landed")


@pytest.mark.parametrize(("survivors", "void"), [(29, True), (30, False), (40, False), (0, True)])
def test_a_round_below_its_minimum_is_charged_and_releases_nothing(survivors: int, void: bool, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, plan_of(min_survivors=30), answer=survivors)
    arrays = attempt.run()
    assert attempt.charges() == 3
    assert len({a.tobytes() for a in attempt.seen}) == (1 if void else 3)
    assert (arrays["item.id.weight"] == 0).all() == void


def test_a_void_round_leaves_the_noise_of_the_others_as_planned(tmp_path: Path) -> None:
    """The later rounds' noise is that of a run in which none was void: it is a function of the round alone."""
    moves = []
    for answers in ([40, 40, 40], [40, 3, 40]):
        (tmp_path / str(answers)).mkdir()
        attempt = Attempt(tmp_path / str(answers), plan_of(min_survivors=30))
        left = iter(answers)

        def collect(round, arrays, cohort, clip_norm, left=left, attempt=attempt):
            attempt.answer = next(left)
            return attempt.collect(round, arrays, cohort, clip_norm)

        attempt.environment = replace(attempt.environment, collect=collect)
        attempt.run()
        moves.append(attempt.seen)
    np.testing.assert_array_equal(moves[1][1], moves[1][0])
    np.testing.assert_allclose(moves[0][2] - moves[0][1], moves[1][2] - moves[1][1], rtol=0, atol=1e-6)


def test_more_answers_than_were_asked_for_are_refused(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, plan_of(), answer=41)
    with pytest.raises(UpdateError, match="41 devices answered, 40 were asked"):
        attempt.run()
    assert attempt.charges() == 0


def keyed(bands: int) -> Callable[[int], NoiseSource]:
    """Return noise that a server with the key draws again after a crash."""
    key = bytes(range(32))

    def draw(round: int) -> SecureNoise:
        return SecureNoise(key, "rounds", round)

    return draw if bands == 1 else CorrelatedNoise(coefficients(bands), 3, draw).of


@pytest.mark.parametrize("bands", [1, 2])
def test_in_earnest_a_round_that_was_charged_is_never_summed_again(bands: int, tmp_path: Path) -> None:
    """A crash between charge and checkpoint: the same noise under another sum would give their difference away."""
    plan = plan_of(simulated=False, **(TURNS | {"bands": bands}))
    attempt = Attempt(tmp_path, plan, noise=keyed(bands))
    ledger = Ledger.create(tmp_path / "crashed.jsonl", plan)
    for round in (0, 1):
        ledger.charge("rounds", round, "before the crash")
    config = ServerConfig(optimiser="sgd", learning_rate=1.0)
    state = replace(start_state(config, ARRAYS, tuple(ARRAYS), 1.0), round=1)
    seen: list[np.ndarray] = []
    run_rounds(
        state,
        plan,
        attempt.environment,
        config=config,
        ledger=ledger,
        on_round=lambda state: seen.append(state.arrays["item.id.weight"]),
    )
    assert attempt.asked == 1 and ledger.spent()["rounds"] == 3
    np.testing.assert_array_equal(seen[0], ARRAYS["item.id.weight"])
    assert (seen[1] != seen[0]).any()


def test_in_earnest_a_sum_that_devices_cannot_have_sent_is_refused(tmp_path: Path) -> None:
    """One device could hide behind many: nothing in a cohort's sum shows that each contribution was clipped."""
    plan = plan_of(simulated=False)

    def summed(round: int, arrays: object, cohort: np.ndarray, clip_norm: float | None) -> CohortSum:
        return CohortSum(round=round, devices=len(cohort), arrays={n: a + 0.5 for n, a in ARRAYS.items()})

    attempt = Attempt(tmp_path, plan, collect=summed, noise=lambda round: SecureNoise())
    with pytest.raises(UpdateError, match="collect its updates"):
        attempt.run()
    assert attempt.charges() == 0


@pytest.mark.parametrize("stated", ["poisson", "fixed_size"])
def test_coins_that_fall_alike_every_round_refuse_to_start(stated: str, tmp_path: Path) -> None:
    """Rounds that all ask the same cohort are amplified once and not in each of them."""
    plan = plan_of(**SAMPLERS[stated])
    stuck = Sampler.of(plan.mechanism("rounds"), 40, lambda round: np.random.default_rng(7))
    Attempt(tmp_path, plan, sampler=stuck).refused("the same coins")
