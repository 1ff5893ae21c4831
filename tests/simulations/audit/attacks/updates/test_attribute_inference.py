from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.special import log_softmax

from fedrecall.simulations.audit.attacks.logistic import fit, log_probabilities
from fedrecall.simulations.audit.attacks.scores import auc, auc_interval
from fedrecall.simulations.audit.attacks.settings import settings_of
from fedrecall.simulations.audit.attacks.updates.attribute_inference import infer_attribute
from fedrecall.simulations.audit.attacks.updates.on_attributes import attack_attributes, attack_queries


def tastes(world) -> list[str]:
    """Whether a device's items are mostly of the first half of the tastes: a trait that shows in its history."""
    store = world.store
    return [str(bool(np.mean(store.history(u) % 8 < 4) > 0.5)) for u in range(store.n_users)]


@pytest.fixture(scope="module")
def settings(world):
    return {setting.name: setting for setting in settings_of(world)}


@pytest.fixture(scope="module")
def from_raw_updates(world, arrays, settings):
    """A trait that shows in the history, and a coin that does not, from the same updates."""
    coin = np.random.default_rng(0).choice(["a", "b"], world.store.n_users).tolist()
    raw = settings["item table trained, raw update"]
    return list(attack_attributes(raw, arrays, {"trait": tastes(world), "coin": coin}, devices=250, seed=1))


def test_a_trait_shows_in_a_raw_update_and_in_a_query(world, arrays, from_raw_updates):
    raw = from_raw_updates[0]
    query = next(attack_queries(world, arrays, {"trait": tastes(world)}, devices=250, seed=1))
    assert raw.low > 0.65
    assert query.low > 0.6
    assert raw.detail["accuracy"] > raw.detail["largest_label"] + 0.1
    assert (raw.verdict, raw.trials, raw.detail["devices"]) == ("shows", 250, 125)


def test_noise_on_the_device_hides_it_and_a_coin_never_shows(world, arrays, settings, from_raw_updates):
    noised = settings["item table trained, noise on each device"]
    hidden = next(attack_attributes(noised, arrays, {"trait": tastes(world)}, devices=60, seed=1))
    assert hidden.low < 0.55
    null = from_raw_updates[1]
    assert null.low < 0.5 < null.high


def test_chance_is_where_the_interval_says(rng):
    """20 null games of 150 judged devices: the mean AUC is 0.5 (sd 0.011), and about 5 % of intervals miss it."""
    features = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 60))
    found, missed = [], 0
    for _ in range(20):
        guesses, _ = infer_attribute([features], rng.choice(["a", "b", "c"], 300).tolist(), rng)
        low, high = auc_interval(guesses, rng)
        found.append(auc(guesses))
        missed += not low <= 0.5 <= high
    assert np.mean(found) == pytest.approx(0.5, abs=0.035)
    assert missed <= 5


def test_rare_labels_are_left_out(rng):
    labels = ["a"] * 60 + ["b"] * 60 + ["c"] * 19
    _, figures = infer_attribute([rng.standard_normal((139, 4))], labels, rng)
    assert (figures["labels"], figures["devices"]) == (2, 60)
    assert infer_attribute([rng.standard_normal((139, 4))], ["a"] * 120 + ["c"] * 19, rng) is None


def test_the_classifier_is_at_the_optimum_of_its_loss(rng):
    features, labels = rng.standard_normal((80, 3)), rng.integers(0, 3, 80)

    def loss(flat):
        weights = flat.reshape(4, 3)
        logs = log_softmax(features @ weights[:-1] + weights[-1], axis=1)
        return -logs[np.arange(80), labels].sum() + 2.0 / 2 * (weights[:-1] ** 2).sum()

    best = fit(features, labels, 3, 2.0)
    assert loss(best.ravel()) <= min(loss(best.ravel() + 0.05 * rng.standard_normal(12)) for _ in range(50))
    slope = check_grad(loss, lambda flat: np.zeros(12), best.ravel())
    assert slope < 0.01
    np.testing.assert_allclose(np.exp(log_probabilities(features, best)).sum(axis=1), 1.0)


def test_an_attribute_without_enough_devices_is_not_tested(arrays, settings):
    setting = replace(settings["item table trained, raw update"])
    groups = {"rare": ["x"] * 599 + ["y"]}
    attempt = next(attack_attributes(setting, arrays, groups, devices=30, seed=1))
    assert attempt.verdict == "not tested"
    assert "20 devices" in attempt.what
