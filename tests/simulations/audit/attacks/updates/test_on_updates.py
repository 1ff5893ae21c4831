"""Interaction membership and history reconstruction: they win on what is raw, and find nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import trim_mean

from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.simulations.audit.attacks.interaction_membership import flip_coins, guess_coins
from fedrecall.simulations.audit.attacks.observed import cut_to_window, groups_of, holds, observe, variants
from fedrecall.simulations.audit.attacks.scores import Guesses, auc
from fedrecall.simulations.audit.attacks.settings import claim_of, settings_of
from fedrecall.simulations.audit.attacks.updates import on_updates
from fedrecall.simulations.audit.attacks.updates.history_reconstruction import matched_items
from fedrecall.simulations.audit.attacks.updates.on_updates import attack_updates
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training.world import cohort_of


@pytest.fixture(scope="module")
def attempts(world, arrays):
    found = {}
    for setting in settings_of(world):
        found |= {attempt.name: attempt for attempt in attack_updates(setting, arrays, devices=60, seed=1)}
    return found


@pytest.mark.parametrize("attack", ["interaction membership", "history reconstruction"])
def test_a_raw_update_of_the_item_table_gives_everything_away(attempts, attack):
    for defence in ("raw update", "norm bound"):
        assert attempts[f"{attack}: item table trained, {defence}"].score >= 0.99
    raw = attempts["history reconstruction: item table trained, raw update"].detail
    assert raw["auc against negatives"] >= 0.95
    assert raw["auc against untouched"] >= 0.99


@pytest.mark.parametrize("attack", ["interaction membership", "history reconstruction"])
def test_a_sum_alone_does_not_hide(attempts, attack):
    twenty, hundred = (
        attempts[f"{attack}: item table trained, sum of 20"],
        attempts[f"{attack}: item table trained, sum of 100"],
    )
    assert hundred.score < twenty.score < 0.99
    assert twenty.low > 0.55


@pytest.mark.parametrize("attack", ["interaction membership", "history reconstruction"])
def test_noise_hides(attempts, attack):
    """From the plan's release, and from an update where the device adds the noise."""
    for defence in ("plan: noised sum", "noise on each device"):
        attempt = attempts[f"{attack}: item table trained, {defence}"]
        assert attempt.score <= 0.60
        assert attempt.verdict in ("held", "shows")
        assert attempt.detail["rounds"] == 4


def test_with_too_little_noise_the_attack_wins(world_of, arrays):
    """Noise a fraction of what the plan says, under unit interaction and local trust."""
    world = world_of("rounds.count=2", preset="interaction-eps2", devices=200)
    rounds = replace(world.plan.mechanism("rounds"), noise_multiplier=0.02)
    weak = replace(world.plan, mechanisms=(world.plan.mechanisms[0], rounds))
    setting = next(s for s in settings_of(world) if s.noised)
    told = claim_of(setting)
    broken = replace(setting, world=replace(setting.world, plan=weak))
    coined, coins = flip_coins(broken.world, np.arange(200), np.random.default_rng(3))
    assert told.epsilon == pytest.approx(2.0, abs=0.01)
    assert len(coined.store.items) < len(broken.world.store.items)
    assert coins.kept.mean() == pytest.approx(0.5, abs=0.1)
    # The plan that the weak noise would have takes seconds to account, and nobody claims it.
    with wrapped(on_updates, "claim_of", lambda _: lambda setting: told):
        held, lost = (next(iter(attack_updates(s, arrays, devices=40, seed=1))) for s in (setting, broken))
    assert held.score < 0.6
    assert lost.score > 0.8
    assert lost.low > held.high


def test_coins_take_away_exactly_what_fell_tails(world):
    coined, coins = flip_coins(world, np.arange(50), np.random.default_rng(0))
    before, after = holds(world.store, np.arange(50)), holds(coined.store, np.arange(50))
    gone = np.zeros_like(before)
    gone[coins.devices[~coins.kept], coins.items[~coins.kept]] = True
    assert np.array_equal(before & ~gone, after)
    assert 0.4 < coins.kept.mean() < 0.6
    assert coined.store.n_users == world.store.n_users


def test_guesses_of_pure_noise_are_chance(world, rng):
    """Scores that know nothing, 40 games of about 400 judged pairs (sd of the mean 0.005)."""
    found = []
    for _ in range(40):
        _, coins = flip_coins(world, np.arange(120), rng)
        scorers = {name: rng.standard_normal((120, world.store.n_items)) for name in "ab"}
        found.append(auc(guess_coins(scorers, groups_of(np.arange(120), 1), coins, rng)[1]))
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_popularity_does_not_tell_a_matched_item_and_tells_a_random_one(world, rng):
    store = world.store
    held = holds(store, np.arange(store.n_users))
    counts = held.sum(axis=0)
    scores: dict[str, list[float]] = {"matched": [], "random": []}
    truth = []
    for device in range(200):
        own, partner = matched_items(held[device], counts, rng)
        assert held[device, own].all()
        assert not held[device, partner].any()
        assert len(set(partner.tolist())) == len(partner) == len(own)
        others = counts - held[device]
        assert (np.abs(others[own] - others[partner]) <= np.maximum(1, 0.1 * others[own])).all()
        free = rng.choice(np.flatnonzero(~held[device]), len(own))
        scores["matched"] += [*others[own], *others[partner]]
        scores["random"] += [*others[own], *others[free]]
        truth += [True] * len(own) + [False] * len(own)
    found = {
        name: auc(Guesses(scores=np.array(s, float), truth=np.array(truth), clusters=np.arange(len(s))))
        for name, s in scores.items()
    }
    assert found["matched"] == pytest.approx(0.5, abs=0.02)
    assert found["random"] > 0.6


def test_what_is_seen_is_what_a_run_makes(world, arrays):
    """A sum of updates is the sum of the updates; noise has the plan's size on every row, a device's each time."""
    cohort, mechanism = cohort_of(world), world.plan.mechanism("rounds")
    devices = np.arange(5)
    seen = [observe(world, cohort, arrays, np.array([d]), round=2, clipped=True) for d in devices]
    total = observe(world, cohort, arrays, devices, round=2, clipped=True)
    for name in total.arrays:
        one_by_one = np.sum([view.arrays[name] for view in seen], axis=0)
        np.testing.assert_allclose(total.arrays[name], one_by_one, atol=1e-5)
        norm = np.sqrt(sum(float((a.astype(float) ** 2).sum()) for a in seen[0].arrays.values()))
        assert norm <= mechanism.clip_norm * (1 + 1e-6)
    noised = observe(world, cohort, arrays, devices, round=2, clipped=True, noise=SeededNoise(0, "test"))
    noise = noised.arrays[ITEM_ID] - total.arrays[ITEM_ID]
    assert noise.std() == pytest.approx(mechanism.noise_multiplier * mechanism.clip_norm, rel=0.05)
    local = next(s.world for s in settings_of(world) if s.name.endswith("noise on each device"))
    plain, loud = (
        observe(local, cohort_of(local), arrays, devices, round=0, clipped=True, noise=noise)
        for noise in (None, SeededNoise(0, "test"))
    )
    sigma = local.plan.mechanism("rounds").noise_multiplier * local.plan.mechanism("rounds").clip_norm
    spread = (loud.arrays[ITEM_ID] - plain.arrays[ITEM_ID]).std()
    assert spread == pytest.approx(sigma * np.sqrt(5), rel=0.05)


@pytest.mark.parametrize("how", ["median", "trimmed mean"])
def test_a_robust_view_is_that_mean_of_the_updates_times_their_number(world, arrays, how):
    cohort, devices = cohort_of(world), np.arange(30)
    seen = [observe(world, cohort, arrays, devices[d : d + 1], round=1, clipped=False) for d in devices]
    robust = observe(world, cohort, arrays, devices, round=1, clipped=False, robust=how)
    for name, array in robust.arrays.items():
        updates = np.stack([view.arrays[name] for view in seen])
        expected = np.median(updates, axis=0) if how == "median" else trim_mean(updates, 0.1, axis=0)
        np.testing.assert_allclose(array, 30 * expected, atol=1e-5)
    settings = [setting for setting in settings_of(world) if setting.robust == how]
    assert [(s.name.removeprefix("item table trained, "), s.clipped, s.noised) for s in settings] == [
        (f"{how} of 100", False, False)
    ] * len(settings)
    assert settings


def test_the_run_is_attacked_as_it_trains_and_as_if_it_trained_the_table(world_of):
    preset = world_of("rounds.train=['transformer.recency.']")
    worlds = variants(preset)
    assert list(worlds) == ["", "item table trained, "]
    assert worlds[""] is preset
    assert "item." in worlds["item table trained, "].config.rounds.train
    assert worlds["item table trained, "].plan.mechanism("rounds") == preset.plan.mechanism("rounds")
    names = [setting.name for setting in settings_of(preset)]
    assert len(set(names)) == len(names) == 15


def test_histories_are_cut_to_the_latest_window(world):
    cut = cut_to_window(world.store, 12)
    for device in range(20):
        assert np.array_equal(cut.history(device), world.store.history(device)[-13:])


def test_the_interval_of_a_held_attack_holds_chance(attempts):
    """The plan's noised sum, membership: the coins alone decide, so chance is exactly 0.5."""
    attempt = attempts["interaction membership: item table trained, plan: noised sum"]
    assert attempt.low < 0.5 + 0.05 and attempt.high > 0.5 - 0.05
    assert attempt.claimed_epsilon == pytest.approx(16.0, abs=0.02)
