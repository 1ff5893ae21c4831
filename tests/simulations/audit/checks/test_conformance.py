"""What the conformance checks lean on, against something independent; and the white box at other noise than stated."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.mechanisms.correlated import coefficients, sensitivity
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.simulations.audit.checks import conformance, white_box
from fedrecall.simulations.audit.checks.all import attempt_check
from fedrecall.simulations.audit.checks.conformance import least_epsilon
from fedrecall.simulations.audit.checks.sensitivity import sensitivity as sensitivity_check
from fedrecall.simulations.audit.checks.start_sensitivity import start_sensitivity
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.config import load_config
from fedrecall.simulations.presets.names import preset_names
from fedrecall.simulations.training.plan import plan_for


@pytest.mark.parametrize("preset", preset_names())
def test_the_closed_form_agrees_with_the_accountant_on_every_preset(preset: str) -> None:
    plan = plan_for(load_config(preset=preset), 500)
    claimed = {row.name: row.epsilon for row in account(plan)}["network"]
    least = least_epsilon(plan)
    assert (claimed is None) == (least is None)
    if claimed is not None and least is not None:
        assert least <= claimed + 1e-6 and claimed == pytest.approx(least, abs=2e-3)


@pytest.mark.parametrize(("bands", "gap", "most", "steps"), [(1, 4, 3, 12), (3, 4, 3, 12), (5, 3, 4, 11), (4, 6, 2, 7)])
def test_the_reach_of_participations_is_that_of_the_matrix(bands: int, gap: int, most: int, steps: int) -> None:
    mechanism = Mechanism(
        name="rounds",
        sampling="limited",
        sample_rate=1 / gap,
        participations=most,
        min_gap=gap,
        bands=bands,
        steps=steps,
        adjacency="zero_out",
        clip_norm=1.0,
        noise_multiplier=1.0,
    )
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=60, mechanisms=(mechanism,))
    expected = sensitivity(coefficients(bands), steps, most, gap)
    assert conformance._reach(plan.mechanism("rounds")) == pytest.approx(expected, rel=1e-9)


def with_noise(trial_folder: Path, factor: float) -> Trial:
    """A trial whose plan states ``factor`` times the noise that its world was set up with."""
    world = subject("central", 0)
    start = world.config.start.model_copy(update={"enabled": False})
    world = replace(world, config=world.config.model_copy(update={"start": start}))
    rounds = replace(world.plan.mechanism("rounds"), noise_multiplier=0.5)
    told = replace(world.plan, mechanisms=(replace(rounds, noise_multiplier=0.5 * factor),))
    trial = Trial(replace(world, plan=replace(world.plan, mechanisms=(rounds,))), trial_folder, 0, 40)
    seen = trial.watched
    claiming = Trial(replace(world, plan=told), trial_folder / "claim", 0, 40)
    claiming.__dict__["watched"], claiming.__dict__["enrolled"] = seen, trial.enrolled
    return claiming


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "held"), (4.0, "broken")])
def test_the_white_box_refutes_noise_that_is_not_there(factor: float, verdict: str, tmp_path: Path) -> None:
    """About 30 + 30 projections at sigma 0.5: a claim of 4 times the noise (mu 0.5 for 2 a release) is refuted."""
    found = {a.name: a for a in white_box.rounds(with_noise(tmp_path, factor))}
    assert found["white box: rounds"].verdict == verdict
    assert found["white box: rounds"].empirical_epsilon is not None


def test_the_sensitivity_of_a_user_reaches_the_clip(tmp_path: Path) -> None:
    """A check that measured 0 everywhere could not see anything."""
    (found,) = sensitivity_check(Trial(subject("central", 0), tmp_path))
    assert found.verdict == "held" and found.score == pytest.approx(1.0, abs=1e-4)
    (local,) = sensitivity_check(Trial(subject("local", 0), tmp_path / "local"))
    assert local.verdict == "held" and local.score is not None and local.score == pytest.approx(1.0, abs=1e-4)


def test_the_sensitivity_of_the_start_reaches_its_bound(tmp_path: Path) -> None:
    """Of a device for both statistics, and of an event for popularity, which alone is offered under its unit."""
    found = start_sensitivity(Trial(subject("central", 0), tmp_path))
    assert [a.name for a in found] == ["sensitivity: popularity", "sensitivity: second_moments"]
    (local,) = start_sensitivity(Trial(subject("local", 0), tmp_path / "local"))
    for attempt in (*found, local):
        assert attempt.verdict == "held" and 1 - 1e-6 < attempt.score < 1 + 1e-9
    # Devices with one item, and all of one item, compare nothing; an event that is held twice is no loss.
    assert min(found[1].detail["ratios"]) == min(local.detail["ratios"]) == 0.0


def test_a_choice_that_is_not_the_one_released_is_seen(tmp_path: Path) -> None:
    """Devices compare other items than the ones that the released popularity chose, or the choice was another one."""
    trial = Trial(subject("central", 0), tmp_path)
    (sound,) = conformance.start_from_releases(trial)
    chosen = trial.watched.start["comparison"]
    trial.watched.start["comparison"] = replace(chosen, top=chosen.top[::-1])
    (other,) = conformance.start_from_releases(trial)
    weighty = replace(chosen, weights=chosen.weights * 2)
    trial.watched.start["comparison"] = weighty
    trial.watched.start["choices"] = [
        (rest, settings, weighty if choice is chosen else choice)
        for rest, settings, choice in trial.watched.start["choices"]
    ]
    (weighed,) = conformance.start_from_releases(trial)
    assert (sound.verdict, other.verdict, weighed.verdict) == ("held", "broken", "broken")


def test_a_check_that_the_product_stops_is_reported_as_not_tested(tmp_path: Path) -> None:
    def refuse(_: Trial) -> list[Attempt]:
        raise UsageError("no such thing")

    (found,) = attempt_check(Trial(subject("central", 0), tmp_path), "mine", refuse)
    assert found.verdict == "not tested" and "no such thing" in found.what


def test_an_attempt_is_strict(tmp_path: Path) -> None:
    sound = attempt_check(Trial(subject("central", 0), tmp_path), "claims", conformance.epsilons)[0]
    for wrong in ({"score": float("nan")}, {"verdict": "fine"}, {"claimed_epsilon": float("inf")}, {"metric": "x"}):
        with pytest.raises(UsageError):
            replace(sound, **wrong)
