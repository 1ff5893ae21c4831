import dataclasses
import json
import math
import warnings

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from fedrecall.privacy.accounting.accounting import (
    ADVERSARIES,
    AdversaryEpsilon,
    account,
    account_adversary,
    cross_check,
    epsilon_after,
    epsilon_curve,
    first_releases,
)
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Plan

ANCHORS = [  # q, sigma, steps, delta, PLD, RDP
    (0.01, 1.0, 1000, 1e-5, 1.8282, 2.1014),
    (0.001, 0.6, 2000, 1e-6, 2.3549, 3.3133),
    (0.05, 1.0, 200, 1e-6, 5.4859, 6.0971),
    (1.0, 10.0, 100, 1e-6, 4.8866, 5.2215),
]


def mechanism(sigma: float, steps: int = 1, q: float = 1.0, name: str = "rounds", **more: object) -> Mechanism:
    fields: dict[str, object] = {
        "name": name,
        "sampling": "everyone" if q == 1.0 else "poisson",
        "sample_rate": q,
        "noise_multiplier": sigma,
        "clip_norm": 1.0,
        "steps": steps,
    }
    return Mechanism(**(fields | more))  # type: ignore[arg-type]


def plan_of(*mechanisms: Mechanism, unit: str = "user", trust: str = "central", delta: float = 1e-5) -> Plan:
    return Plan(unit=unit, trust=trust, delta=delta, devices=6040, mechanisms=mechanisms)  # type: ignore[arg-type]


def rows(plan: Plan) -> dict[str, AdversaryEpsilon]:
    return {row.name: row for row in account(plan)}


def released(plan: Plan) -> float:
    epsilon = account_adversary(plan, "released-model").epsilon
    assert epsilon is not None
    return epsilon


START = (mechanism(3.3, name="popularity"), mechanism(1.5, name="second_moments"))


class TestAnchors:
    @pytest.mark.parametrize(("q", "sigma", "steps", "delta", "pld", "rdp"), ANCHORS)
    def test_add_remove(self, q: float, sigma: float, steps: int, delta: float, pld: float, rdp: float) -> None:
        plan = plan_of(mechanism(sigma, steps, q), delta=delta)
        checks = cross_check(plan)
        assert checks["pld"] == pytest.approx(pld, abs=1e-3)
        assert checks["rdp"] == pytest.approx(rdp, abs=1e-3)
        assert checks["pld"] == released(plan)

    def test_replace_one_unsampled_doubles_the_shift_once(self) -> None:
        checks = cross_check(plan_of(mechanism(10.0, 100, adjacency="replace_one"), delta=1e-6))
        assert checks["pld"] == pytest.approx(10.997, abs=1e-3)
        assert checks["closed_form"] == pytest.approx(gaussian_epsilon(2.0, 1e-6), abs=1e-9)
        assert checks["rdp"] is not None and checks["rdp"] > 10.997  # 5.222 is the trap

    def test_replace_one_sampled_does_not_halve_sigma_as_well(self) -> None:
        plan = plan_of(mechanism(1.0, 1000, 0.01, adjacency="replace_one"))
        assert released(plan) == pytest.approx(2.844, abs=1e-3)
        assert cross_check(plan)["rdp"] is None

    @pytest.mark.parametrize(("epsilon", "mu"), [(8, 1.666), (4, 0.925), (2, 0.502), (1, 0.268)])
    def test_mu(self, epsilon: float, mu: float) -> None:
        # mu is given to three digits: half a unit of the last one moves epsilon by at most 3e-3.
        assert released(plan_of(mechanism(math.sqrt(100) / mu, 100))) == pytest.approx(epsilon, abs=3.5e-3)


class TestAgainstOthers:
    def test_a_whole_plan_against_the_library_event_by_event(self) -> None:
        plan = plan_of(*START, mechanism(2.3, 60, 0.25), mechanism(2.3, 40, 0.25, name="more"))
        accountant = PLDAccountant()
        for sigma in (3.3, 1.5):
            accountant.compose(dp_accounting.GaussianDpEvent(sigma))
        sampled = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(2.3))
        accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, 100))
        assert released(plan) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-4)

    def test_replacement_against_the_library(self) -> None:
        plan = plan_of(
            mechanism(3.3, name="popularity", adjacency="replace_one"),
            mechanism(4.0, 10, 0.25, adjacency="replace_one"),
        )
        accountant = PLDAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
        accountant.compose(dp_accounting.GaussianDpEvent(3.3))  # the library doubles the shift by itself
        sampled = dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(4.0))
        accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, 10))
        assert released(plan) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-4)
        assert rows(plan)["released-model"].adjacency == "replace_one"

    def test_an_event_in_counts_and_in_blocks_has_two_shifts_and_the_row_says_so(self) -> None:
        plan = plan_of(mechanism(3.3, name="popularity"), mechanism(8.0, adjacency="replace_one"), unit="interaction")
        row = rows(plan)["released-model"]
        assert row.adjacency == "add_remove (popularity); replace_one (rounds)"
        assert row.epsilon == pytest.approx(gaussian_epsilon(math.hypot(1 / 3.3, 2 / 8.0), 1e-5), abs=1e-3)

    @pytest.mark.parametrize(
        "mechanisms",
        [
            (mechanism(0.5),),
            (mechanism(20.0),),
            (mechanism(12.0, 300), mechanism(2.0, name="popularity")),
            (mechanism(5.0, 20, adjacency="replace_one"),),
        ],
    )
    def test_unsampled_plans_against_the_closed_form(self, mechanisms: tuple[Mechanism, ...]) -> None:
        checks = cross_check(plan_of(*mechanisms))
        assert checks["closed_form"] is not None and checks["pld"] is not None and checks["rdp"] is not None
        assert checks["closed_form"] <= checks["pld"] <= checks["closed_form"] + 1e-3
        assert checks["pld"] <= checks["rdp"]

    @pytest.mark.parametrize(("q", "sigma", "steps", "delta"), [a[:4] for a in ANCHORS[:3:2]])
    def test_prv_agrees(self, q: float, sigma: float, steps: int, delta: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import PRVAccountant

            accountant = PRVAccountant()
            accountant.history = [(sigma, q, steps)]
            prv = accountant.get_epsilon(delta)
        assert released(plan_of(mechanism(sigma, steps, q), delta=delta)) == pytest.approx(prv, abs=0.02)

    def test_a_wide_cell_is_still_an_upper_bound(self) -> None:
        plan = plan_of(*START, mechanism(2.3, 100, 0.25))
        fine = released(plan)
        coarse = account_adversary(plan, "released-model", 1e-3).epsilon
        assert coarse is not None and fine <= coarse <= fine + 1e-3

    def test_hardly_any_noise_is_a_large_number_and_not_a_hang(self) -> None:
        exact = gaussian_epsilon(1000.0, 1e-5)
        epsilon = account_adversary(plan_of(mechanism(0.001)), "released-model", 1e-3).epsilon
        assert epsilon is not None and exact <= epsilon <= exact * 1.001


class TestAdversaries:
    def test_central_user(self) -> None:
        table = rows(plan_of(*START, mechanism(2.3, 100, 0.25)))
        assert tuple(table) == ADVERSARIES
        model, network = table["released-model"], table["network"]
        assert (model.sampling, network.sampling) == ("poisson", "unamplified")
        assert model.epsilon == pytest.approx(6.4254, abs=1e-3)
        mu = math.sqrt(1 / 3.3**2 + 1 / 1.5**2 + 100 / 2.3**2)
        assert network.epsilon == pytest.approx(gaussian_epsilon(mu, 1e-5), abs=1e-3)
        for name in ("server", "device-thief"):
            assert table[name].epsilon is None and table[name].reason and table[name].accountant == "none"

    def test_everyone_taking_part_leaves_nothing_to_amplify(self) -> None:
        table = rows(plan_of(mechanism(10.0, 100)))
        assert table["released-model"].sampling == "unamplified"
        assert table["released-model"].epsilon == table["network"].epsilon

    @pytest.mark.parametrize("trust", ["central", "local"])
    def test_sampling_never_amplifies_interactions(self, trust: str) -> None:
        sampled = rows(plan_of(mechanism(10.0, 100, 0.1), unit="interaction", trust=trust, delta=1e-6))
        assert sampled["released-model"].epsilon == pytest.approx(4.8866, abs=1e-3)
        assert sampled["released-model"].sampling == "unamplified"

    def test_local_server_sees_what_everybody_sees(self) -> None:
        table = rows(plan_of(mechanism(10.0, 100), unit="interaction", trust="local", delta=1e-6))
        assert table["server"].epsilon == table["network"].epsilon == table["released-model"].epsilon
        assert table["server"].epsilon == pytest.approx(4.8866, abs=1e-3)
        assert table["server"].adjacency == "add_remove"
        assert table["device-thief"].epsilon is None

    def test_local_user_level_counts_any_two_histories_as_neighbours(self) -> None:
        row = rows(plan_of(mechanism(10.0, 100), trust="local", delta=1e-6))["server"]
        assert row.epsilon == pytest.approx(10.997, abs=1e-3)
        assert row.adjacency == "replace_one"

    def test_a_round_that_may_be_void_tells_who_is_there(self) -> None:
        """With all devices as the minimum one that is missing shows, whatever the noise: its data alone is hidden."""
        for least, relation in ((0, "add_remove"), (6040, "zero_out")):
            found = rows(plan_of(*START, mechanism(2.3, 100, min_survivors=least)))
            assert found["released-model"].adjacency == relation
            assert found["network"].adjacency == "zero_out"

    @pytest.mark.parametrize("bare", [mechanism(0.0, 5), mechanism(0.0, 5, clip_norm=None)])
    def test_no_noise_is_unbounded_for_everybody(self, bare: Mechanism) -> None:
        for row in account(plan_of(*START, bare)):
            assert row.epsilon is None
        assert "rounds" in rows(plan_of(*START, bare))["released-model"].reason

    def test_steps_never_taken_cost_nothing(self) -> None:
        unused = mechanism(0.0, 0, clip_norm=None)
        assert released(plan_of(START[0], unused)) == released(plan_of(START[0]))
        assert released(plan_of(unused)) == 0.0
        assert rows(plan_of(unused))["released-model"].reason == "nothing is released"

    def test_delta_beyond_the_accountant_is_no_number(self) -> None:
        row = account_adversary(plan_of(mechanism(1.0, 1000, 0.01), delta=1e-200), "released-model")
        assert row.epsilon is None and "1e-200" in row.reason

    def test_rows_are_strict_json(self) -> None:
        json.dumps([dataclasses.asdict(row) for row in account(plan_of(*START))], allow_nan=False)

    def test_an_unknown_adversary_is_named(self) -> None:
        with pytest.raises(PlanError, match="'nsa': choose one of released-model"):
            account_adversary(plan_of(*START), "nsa")  # type: ignore[arg-type]


class TestCurve:
    PLAN = plan_of(*START, mechanism(2.3, 50, 0.25))

    def test_points_agree_with_the_accountant_on_the_same_prefix(self) -> None:
        curve = epsilon_curve(self.PLAN, "released-model")
        assert len(curve) <= 40
        assert [count for count, _ in curve[:2]] == [1, 2] and curve[-1][0] == 52
        assert curve[-1][1] == released(self.PLAN)
        for count, epsilon in (curve[0], curve[1], curve[len(curve) // 2]):
            assert epsilon == pytest.approx(released(first_releases(self.PLAN, count)), abs=1e-3)
        values = [epsilon for _, epsilon in curve]
        assert values == sorted(values)  # type: ignore[type-var]

    def test_a_prefix_without_amplification_is_exact_and_one_with_it_is_bounded(self) -> None:
        for count in (1, 2, 30):
            mu = math.sqrt(sum(m.steps / m.noise_multiplier**2 for m in first_releases(self.PLAN, count).mechanisms))
            assert epsilon_after(self.PLAN, count, "network") == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-12)
            exact = released(first_releases(self.PLAN, count))
            found = epsilon_after(self.PLAN, count, "released-model", 1e-2)
            assert found is not None and exact - 1e-3 <= found <= exact + 0.03
        assert epsilon_after(self.PLAN, 2, "server") is None

    def test_network_is_the_closed_form(self) -> None:
        for count, epsilon in epsilon_curve(self.PLAN, "network")[2:]:
            mu = math.sqrt(1 / 3.3**2 + 1 / 1.5**2 + (count - 2) / 2.3**2)
            assert epsilon == pytest.approx(gaussian_epsilon(mu, 1e-5), abs=1e-3)

    def test_unbounded_from_where_noise_stops(self) -> None:
        curve = dict(epsilon_curve(plan_of(START[0], mechanism(0.0, 3)), "released-model"))
        assert curve[1] is not None and curve[2] is None and curve[4] is None

    def test_nothing_released_has_no_points(self) -> None:
        assert epsilon_curve(plan_of(mechanism(1.0, 0)), "released-model") == []
        assert epsilon_curve(plan_of(), "released-model") == []
