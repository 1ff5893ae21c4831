from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedrecall.simulations.audit.attacks.models import shadow_models
from fedrecall.simulations.audit.attacks.models.device_membership import attack_devices, device_bound
from fedrecall.simulations.audit.attacks.models.on_models import attack_model
from fedrecall.simulations.audit.attacks.models.promotion import defended, train_under
from fedrecall.simulations.audit.attacks.models.shadow_models import Shadows, signal, train_shadows
from fedrecall.simulations.audit.attacks.scores import Claim, Guesses, auc
from fedrecall.simulations.runs.recaller import item_vectors

CLAIM = Claim(epsilon=1.0, delta=1e-5, relation="add_remove")


def shadows_of(rng, *, models: int, devices: int, shift: float) -> Shadows:
    """Signals that differ from device to device by far more than by membership."""
    included = rng.random((models, devices)) < 0.5
    signals = 5 * rng.standard_normal(devices) + rng.standard_normal((models, devices)) + shift * included
    return Shadows(signals=signals, included=included)


@pytest.mark.parametrize("attack", ["LiRA", "RMIA"])
def test_a_planted_shift_is_found_at_its_size_and_breaks_the_claim(rng, attack):
    guesses = attack_devices(shadows_of(rng, models=40, devices=400, shift=3.0))[attack]
    # RMIA compares with the mean over models, which a device is in half of: as good as LiRA but for outliers.
    assert auc(guesses) == pytest.approx(norm.cdf(3.0 / np.sqrt(2)), abs=0.04)
    assert len(guesses.truth) == 10 * 400
    assert device_bound(guesses, CLAIM).epsilon > 2.0


@pytest.mark.parametrize("attack", ["LiRA", "RMIA"])
def test_without_a_shift_it_is_chance_and_no_bound(rng, attack):
    for _ in range(5):
        guesses = attack_devices(shadows_of(rng, models=16, devices=300, shift=0.0))[attack]
        assert auc(guesses) == pytest.approx(0.5, abs=0.06)
        assert device_bound(guesses, CLAIM).epsilon < 0.3


def test_targets_are_judged_by_shadows_alone(rng):
    """Another target's coins and signals change no guess: each coin is fair given what its guess was made from."""
    shadows = shadows_of(rng, models=16, devices=50, shift=1.0)
    other = replace(shadows, included=shadows.included.copy(), signals=shadows.signals.copy())
    other.included[1] = ~other.included[1]
    other.signals[1] += rng.standard_normal(50)
    for attack in ("LiRA", "RMIA"):
        first, second = (attack_devices(s)[attack] for s in (shadows, other))
        assert np.array_equal(first.scores[:50], second.scores[:50])


def test_a_device_that_all_shadows_know_is_left_out(rng):
    shadows = shadows_of(rng, models=8, devices=30, shift=1.0)
    shadows.included[2:, 7] = True
    kept = attack_devices(shadows)["LiRA"].clusters
    assert 7 not in kept
    assert len(set(kept.tolist())) >= 25


def test_the_signal_is_the_mean_log_likelihood_of_the_next_items(world, arrays):
    """Against a naive loop over positions."""
    from fedrecall.client.recall.retrieval import contexts, shared_transformer

    vectors = torch.as_tensor(item_vectors(arrays, None))
    found = signal(world, arrays, np.arange(3))
    for device in range(3):
        context, items, _ = contexts(shared_transformer(arrays, world.shape), vectors, world.store, np.array([device]))
        logs = []
        for place in range(items.shape[1] - 1):
            if items[0, place] >= 0:
                scores = vectors @ context[0, place]
                logs.append(float(scores[items[0, place + 1]] - torch.logsumexp(scores, 0)))
        assert found[device] == pytest.approx(np.mean(logs), abs=1e-4)


def test_models_that_memorise_give_devices_away_and_private_ones_do_not(world_of):
    """Without privacy, few devices and a table trained hard; then the same under epsilon 1."""
    settings = (
        "rounds.count=20",
        "start.enabled=false",
        "server.optimiser=fedadam",
        "server.learning_rate=0.2",
        "server.checkpoint_every=20",
    )
    results = {}
    for epsilon, models in (("'null'", 20), ("1.0", 8)):
        world = world_of(*settings, f"privacy.epsilon={epsilon}", devices=30)
        rows = attack_model(world, "", models=models, seconds=60, seed=1, progress=lambda *_: None)
        results[epsilon] = {row.name: row for row in rows}
    names = {"device membership: LiRA", "device membership: RMIA"}
    assert set(results["1.0"]) == names
    for name in names:
        leaky, private = results["'null'"][name], results["1.0"][name]
        assert leaky.low > 0.6
        assert (leaky.verdict, leaky.claimed_epsilon) == ("shows", None)
        assert private.low < 0.6
        assert private.verdict == "held"
        assert private.claimed_epsilon == pytest.approx(1.0, abs=0.01)
        assert private.detail["models"] == 8


@pytest.mark.slow
def test_membership_is_attacked_under_other_defences_than_the_plan(world_of):
    """A model of each defence, and of a plan that hides nothing: without noise nothing is claimed."""
    world = world_of("rounds.count=2", devices=120)
    signals, scores = {}, set()
    for defence in ("none", "norm bound", "median", "trimmed mean"):
        rows = list(attack_model(world, "", models=4, seconds=60, seed=1, progress=lambda *_: None, defence=defence))
        assert [row.name for row in rows] == [f"device membership: {defence}, {name}" for name in ("LiRA", "RMIA")]
        assert {(row.verdict, row.claimed_epsilon, row.detail["models"]) for row in rows} == {("shows", None, 4)}
        scores.add(rows[0].score)
        signals[defence] = train_under(world, defence)
    assert len(scores) == 4, "of one seed: the models differ by their defence alone"
    names = sorted(signals["none"])
    assert all(np.isfinite(signals[defence][name]).all() for defence in signals for name in names)
    # Each is another aggregate of the same updates.
    changed = [np.concatenate([signals[defence][name].ravel() for name in names]) for defence in signals]
    assert min(np.abs(a - b).max() for i, a in enumerate(changed) for b in changed[:i]) > 1e-6


def test_the_model_without_a_defence_is_that_of_a_run_without_privacy(world_of):
    """Oracle: the training of ``fedrecall run`` on the plan without noise and clip."""
    world = world_of("rounds.count=3", devices=120)
    again = shadow_models.trained(defended(world, "none"))
    for name, array in train_under(world, "none").items():
        np.testing.assert_allclose(array, again[name], atol=1e-6)


def test_shadow_models_are_of_fair_halves_and_stop_in_time(world_of, rng):
    world = world_of(devices=200)
    devices = np.arange(200)
    shadows = train_shadows(world, devices, models=30, seconds=0.0, rng=rng, progress=lambda *_: None)
    assert shadows.signals.shape == (4, 200)
    np.testing.assert_allclose(shadows.signals.mean(axis=1), 0.0, atol=1e-9)
    # 800 coins: a deviation of 0.018.
    assert shadows.included.mean() == pytest.approx(0.5, abs=0.07)
    assert isinstance(attack_devices(shadows)["LiRA"], Guesses)
