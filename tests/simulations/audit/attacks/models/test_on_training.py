from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from fedrecall.client.recall.retrieval import query_vectors, shared_transformer
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.audit.attacks.models.fakes import (
    Staged,
    choose_target,
    fake_histories,
    with_fakes,
    with_idle,
)
from fedrecall.simulations.audit.attacks.models.on_training import attack_training
from fedrecall.simulations.audit.attacks.models.promotion import defended, hold_out, outcome, started, train_poisoned
from fedrecall.simulations.audit.attacks.robust import aggregate
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.simulated_noise import server_noise
from fedrecall.simulations.training.start import start_arrays

from ....runs.small_runs import small_config

SETTINGS = ("server.optimiser=sgd", "server.learning_rate=0.3", "rounds.count=3")


def test_scaled_devices_win_without_a_defence_and_every_defence_stops_them(world_of, rng):
    world = world_of(*SETTINGS, devices=80)
    store, wanted = hold_out(world.store)
    world = replace(world, store=store)
    target = choose_target(store, rng)
    made = fake_histories(store, target, popular=True, fakes=2, length=12, rng=rng)
    staged, alone = with_fakes(world, target, made), with_fakes(world, target, [])

    def reached(staged, defence) -> int:
        arrays = train_poisoned(staged, "scaled", defence, started(staged, defence))
        return outcome(world, arrays, np.arange(80), wanted, target).exposed[10]

    assert reached(alone, "none") <= 2
    assert reached(staged, "none") >= 20
    for defence in ("norm bound", "plan", "median", "trimmed mean"):
        assert reached(staged, defence) <= 10


@pytest.fixture(scope="module")
def promoted(world_of):
    rows = attack_training(world_of(*SETTINGS, devices=150), "", seconds=600, seed=3, progress=lambda *_: None)
    return {row.name: row for row in rows}


@pytest.mark.slow
def test_every_strategy_meets_every_defence(promoted):
    won = promoted["promotion: scaled, none"]
    assert won.score > won.chance + 0.2 * won.trials
    assert won.low > won.chance
    for defence in ("norm bound", "plan", "median", "trimmed mean"):
        assert promoted[f"promotion: scaled, {defence}"].high < won.low
    assert len(promoted) == 15
    assert {row.verdict for row in promoted.values()} == {"shows"}


@pytest.mark.slow
def test_exposure_and_damage_stand_beside_what_they_were(promoted):
    for row in promoted.values():
        detail = row.detail
        assert row.chance == round(detail["exposure@10 before"] * row.trials)
        assert row.score == round(detail["exposure@10 after"] * row.trials)
        assert row.low <= row.score <= row.high
        assert detail["exposure@50 after"] >= detail["exposure@10 after"]
        assert 0 < detail["recall@10 before"] <= detail["recall@50 before"]
    bound = promoted["promotion: scaled, norm bound"].detail
    assert bound["recall@10 after"] > 0.8 * bound["recall@10 before"]


def test_what_the_time_does_not_allow_is_not_tested(world):
    rows = list(attack_training(world, "x, ", seconds=-1, seed=0, progress=lambda *_: None))
    assert {row.verdict for row in rows} == {"not tested"}
    assert len({row.name for row in rows}) == 15
    local = replace(world, plan=replace(world.plan, unit="interaction"))
    (only,) = attack_training(local, "", seconds=60, seed=0, progress=lambda *_: None)
    assert "cannot bound the norm" in only.what


@pytest.mark.parametrize("devices", [1, 2, 9, 30])
def test_robust_means_are_those_of_numpy_and_scipy(rng, devices):
    updates = rng.standard_normal((devices, 3, 2))
    np.testing.assert_allclose(aggregate(updates, "median"), np.median(updates, axis=0))
    np.testing.assert_allclose(aggregate(updates, "trimmed mean"), trim_mean(updates, 0.1, axis=0))


def test_a_robust_round_moves_the_model_as_far_as_a_round_without_defence(world_of):
    """256 of 600 devices stand for all of them: the mean of some, for the sum of all."""
    world = world_of(*SETTINGS, "rounds.count=1")
    staged = Staged(world=world, fakes=0, target=0)
    start = started(staged, "none")
    moved = {}
    for defence in ("none", "trimmed mean"):
        after = train_poisoned(staged, "random", defence, start)
        moved[defence] = np.sqrt(sum(float(np.square(after[name] - start[name]).sum()) for name in after))
    assert moved["trimmed mean"] == pytest.approx(moved["none"], rel=0.4)


def test_robust_means_do_not_follow_one_liar(rng):
    updates = rng.standard_normal((20, 4))
    lied = updates.copy()
    lied[0] = 1e9
    for how in ("median", "trimmed mean"):
        assert np.abs(aggregate(lied, how) - aggregate(updates, how)).max() < 1.5
    with pytest.raises(UsageError, match="at least one"):
        aggregate(updates[:0], "median")


def test_fakes_are_devices_like_others_and_the_plan_counts_them(world, rng):
    target = choose_target(world.store, rng)
    made = fake_histories(world.store, target, popular=True, fakes=5, length=11, rng=rng)
    staged = with_fakes(world, target, made)
    store = staged.world.store
    assert (store.n_users, staged.honest, staged.world.plan.devices) == (605, 600, 605)
    counts = np.bincount(world.store.items, minlength=400)
    assert counts[target] <= np.median(counts[counts > 0])
    for fake in range(5):
        history = store.history(600 + fake)
        assert np.array_equal(history, made[fake])
        assert (history[1::2] == target).all()
        assert (counts[history[::2]] >= np.quantile(counts, 0.9)).all()
        assert target not in history[::2]
    for device in range(20):
        assert np.array_equal(store.history(device), world.store.history(device))


def test_before_the_attack_the_malicious_devices_are_idle_under_the_same_plan_and_noise(world, rng):
    target = choose_target(world.store, rng)
    made = fake_histories(world.store, target, popular=True, fakes=5, length=11, rng=rng)
    idle, attacked = with_idle(world, target, 5).world, with_fakes(world, target, made).world
    assert idle.plan.digest() == attacked.plan.digest()
    assert idle.store.counts()[-5:].tolist() == [0] * 5
    assert idle.store.n_events == world.store.n_events
    drawn = [server_noise(w, "rounds", 1).normal((4,), 1.0) for w in (world, idle, attacked)]
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_defences_are_the_plan_or_its_clip_alone(world):
    none, bound, plan = (defended(world, d).plan.mechanism("rounds") for d in ("none", "norm bound", "plan"))
    assert (none.clip_norm, none.noise_multiplier) == (None, 0.0)
    assert (bound.clip_norm, bound.noise_multiplier) == (world.config.privacy.clip_norm, 0.0)
    assert plan == world.plan.mechanism("rounds")


def test_exposure_and_recall_are_counted_like_a_naive_list(world, tmp_path):
    store, wanted = hold_out(world.store)
    assert all(
        world.store.history(u)[-1] == wanted[u] and len(store.history(u)) + 1 == len(world.store.history(u))
        for u in range(600)
    )
    world = replace(world, store=store)
    arrays = train(world, tmp_path, resume=False, validate=None, progress=lambda *_: None).arrays
    devices, target = np.arange(40), int(np.bincount(store.items).argmax())
    vectors = item_vectors(arrays, None)
    queries = query_vectors(shared_transformer(arrays, world.shape), torch.as_tensor(vectors), store, devices, None)
    counted = exposed = hits = 0
    for device in devices:
        history = set(store.history(device).tolist())
        if target in history or wanted[device] == target:
            continue
        ranked = [i for i in np.argsort(-(vectors @ queries[device])) if i not in history][:10]
        counted += 1
        exposed += target in ranked
        hits += wanted[device] in ranked
    found = outcome(world, arrays, devices, wanted[devices], target)
    assert (found.devices, found.exposed[10], found.hits[10]) == (counted, exposed, hits)


def test_a_catalogue_that_is_shorter_than_a_list_is_shown_whole(cache, tmp_path, rng):
    rows = [f"u{user},i{item},{time}" for user in range(20) for time, item in enumerate(rng.permutation(30)[:6])]
    (tmp_path / "tiny.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    import_files(ImportSpec(files=(tmp_path / "tiny.csv",), name="tiny", user="user", item="item", time="time"))
    world = prepare(small_config(dataset="tiny"), lambda *_: None)[2]
    store, wanted = hold_out(world.store)
    world = replace(world, store=store)
    arrays = start_arrays(world, lambda _: None, lambda *_: None)[0]
    target = int(np.bincount(store.items, minlength=30).argmin())
    found = outcome(world, arrays, np.arange(20), wanted, target)
    assert found.exposed[50] == found.hits[50] == found.devices > found.exposed[10]
