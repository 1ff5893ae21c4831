"""Canary events in a deployment of unit ``interaction``: real device folders, judged by what they sent."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.folder import DeviceFolder, task_of
from fedrecall.client.events.store import EventStore
from fedrecall.client.training import trainer
from fedrecall.models.recall import initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.publish import Publisher
from fedrecall.simulations.audit.deployments.events import EventCanaries, audit_events, decorrelated, scores_of

from ....client.device.small_devices import ingest_store
from ....server.deployment.small_jobs import SGD
from ..planting.planted_noise import noise_times

DEVICES, ROUNDS, ITEMS, EPSILON = 3, 4, 96, 24.0
SIGMA = 2 * np.sqrt(ROUNDS) / gaussian_mu(EPSILON, 1e-5)
MECHANISM = Mechanism(
    name="rounds", clip_norm=0.01, noise_multiplier=SIGMA, steps=ROUNDS, adjacency="replace_one", min_survivors=0
)
SHAPE = ModelShape(
    n_items=ITEMS, n_features=0, n_types=1, dim=8, window=6, blocks=1, heads=2, hidden=8, user_dim=4, user_hidden=4
)
LOCAL = LocalConfig(negatives=12, blocks=20)
BUDGET = Budget(epsilon=None, delta=1e-5, unit="interaction")


def job_in(folder: Path, mechanism: Mechanism = MECHANISM, local: LocalConfig = LOCAL, **plan: Any) -> Job:
    made = {"unit": "interaction", "trust": "local", "delta": 1e-5, "devices": DEVICES} | plan
    task = task_of(Plan(mechanisms=(mechanism,), **made), SHAPE, local, ("item.id.weight",), seed=1)
    fresh = initial_arrays(SHAPE, 1)
    folder.mkdir(parents=True)
    arrays = {name: fresh[name].numpy() for name in shared_names(fresh)}
    arrays["item.id.weight"] = np.random.default_rng(3).standard_normal((ITEMS, SHAPE.dim)).astype(np.float32)
    Job(folder=folder, task=task, config=SGD, deadline_s=1.0, wait_s=0.0).save(arrays)
    return Job.load(folder)


def deploy(folder: Path, seed: int) -> tuple[Job, EventCanaries, list[dict[int, bytes]]]:
    """Run all rounds over devices that are the auditor's, each in a folder of its own, in earnest."""
    job = job_in(folder / "job")
    canaries, places = EventCanaries.flip(job.task, DEVICES, seed), []
    items = tuple(f"i{n}" for n in range(ITEMS))
    for number in range(DEVICES):
        place = folder / f"device-{number}"
        place.mkdir(mode=0o700)
        invitation = Invitation(
            number=number,
            task=job.task,
            address="127.0.0.1:9092",
            root_certificates=None,
            items=items,
            event_weights={"event": 1.0},
        )
        DeviceFolder.enrol(place, invitation, BUDGET)
        own = canaries.history(number)
        users = np.zeros(len(own), dtype=np.int64)
        ingest_store(place, EventStore.from_columns(users=users, items=own, n_users=1, n_items=ITEMS))
        places.append(place)
    sent: list[dict[int, bytes]] = [{} for _ in places]

    def collect(round: int, model: Arrays, cohort: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        header = {"round": round, "mechanism": "rounds", "clip_norm": clip_norm, "task": job.task.digest()}
        for number, place in enumerate(places):
            sent[number][round] = DeviceFolder(place).answer(pack(model, header))
            arrays, said = unpack(sent[number][round], what="an update")
            yield Update(round=round, nonce=said["nonce"], arrays=arrays)

    digest = job.task.plan.digest()
    publish = Publisher(folder=job.folder, items=items, features=None, plan_digest=digest, simulated=False, keep=99)

    refusals: Counter[str] = Counter()
    job.run(collect, refusals, publish)
    assert not refusals
    return job, canaries, sent


def test_sound_devices_hold_and_those_without_noise_or_with_a_fifth_of_it_do_not(tmp_path: Path) -> None:
    verdicts = {}
    for factor in (1.0, 0.2, 0.0):
        with noise_times(trainer, factor):
            job, canaries, sent = deploy(tmp_path / f"noise-{factor}", seed=4)
        found = {attempt.name: attempt for attempt in audit_events(job.folder, canaries, sent)}
        verdicts[factor] = {name: attempt.verdict for name, attempt in found.items()}
        white = found["deployed: white box"]
        assert white.unit == "interaction" and white.adversary == "server"
        assert white.trials == canaries.coins.size > 50
        assert white.claimed_epsilon == pytest.approx(EPSILON, rel=1e-3)
        if factor == 1.0:
            # Of the claim's mu a canary reaches half, less what so few coins leave open.
            assert 0.2 < white.detail["mu"] / white.detail["claimed_mu"] < 0.6
            assert white.detail["mean_in"] - white.detail["mean_out"] == pytest.approx(1.0, abs=0.5)
    assert [verdicts[factor]["deployed: white box"] for factor in (1.0, 0.2, 0.0)] == ["held", "broken", "broken"]


def test_scores_are_coins_with_noise_of_the_plan_s_size(tmp_path: Path) -> None:
    """Both sides have the deviation that follows from the noise, no two scores hang together."""
    noise = []
    for seed in range(6):
        job, canaries, sent = deploy(tmp_path / str(seed), seed=seed)

        noise += [scores_of(job, canaries, d, updates)[0] - canaries.coins[d] for d, updates in enumerate(sent)]
    rows = np.array(noise)
    std = SIGMA / np.sqrt(ROUNDS)  # a canary moves every update by one clip
    # Four standard errors of a deviation of so many draws, and of the correlation of neighbours.
    assert rows.std() == pytest.approx(std, rel=4 / np.sqrt(2 * rows.size))
    assert abs(rows.mean()) < 4 * std / np.sqrt(rows.size)
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 4 / np.sqrt(rows.size)


def test_without_noise_scores_are_the_coins(tmp_path: Path) -> None:
    """What the device sends is then what its events give, to the rounding of float32, in every round."""
    with noise_times(trainer, 0.0):
        job, canaries, sent = deploy(tmp_path, seed=3)
    for device, updates in enumerate(sent):
        scores, shifts = scores_of(job, canaries, device, updates)
        np.testing.assert_allclose(scores, canaries.coins[device], atol=1e-4)
        assert (shifts <= 0.01 * np.sqrt(ROUNDS) * (1 + 1e-6)).all() and shifts.min() > 0.015


def test_directions_are_orthonormal_and_the_closest_to_the_changes() -> None:
    """Rows that all have much in common; no rotation of the directions is closer (Lowdin 1950)."""
    rng = np.random.default_rng(2)
    known = rng.standard_normal((6, 40)) + 2 * rng.standard_normal(40)
    directions, shifts = decorrelated(known)
    np.testing.assert_allclose(directions @ directions.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(shifts, (directions * known).sum(axis=1))
    assert shifts.min() > 0
    for _ in range(20):
        turned = np.linalg.qr(np.eye(6) + 0.1 * rng.standard_normal((6, 6)))[0]
        assert np.square(turned @ directions - known).sum() >= np.square(directions - known).sum()
    with pytest.raises(UsageError, match="nothing of its own"):
        decorrelated(np.concatenate([known, known[:1] + known[1:2]]))


def test_coins_are_fair_and_every_block_has_its_own_pair(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job")
    canaries = EventCanaries.flip(job.task, 3000, 2)
    assert np.abs(canaries.coins.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(3000)
    assert len(set(canaries.pairs.ravel().tolist())) == canaries.pairs.size
    inside = canaries.history(0)[len(canaries.pairs) :]
    assert set(inside.tolist()) == set(canaries.pairs[canaries.coins[0], 1].tolist())


def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    refused = {
        "unit": job_in(tmp_path / "a", replace(MECHANISM, adjacency="add_remove"), unit="user", trust="central"),
        "noise": job_in(tmp_path / "b", replace(MECHANISM, noise_multiplier=0.0)),
        "dropout": job_in(tmp_path / "c", local=LOCAL.model_copy(update={"dropout": 0.5})),
    }
    for need, job in refused.items():
        with pytest.raises(UsageError, match=need):
            EventCanaries.flip(job.task, 2, 0)
    job, canaries, sent = deploy(tmp_path / "d", seed=1)
    with pytest.raises(UsageError, match="sent nothing"):
        audit_events(job.folder, canaries, [*sent[:2], {}])
    with pytest.raises(CorruptArtefact, match="round 1"):
        audit_events(job.folder, canaries, [{**sent[0], 1: sent[0][0]}, *sent[1:]])
    few = [{round: data for round, data in updates.items() if round != 2} for updates in sent]
    assert audit_events(job.folder, canaries, few), "a round without an answer is passed over"
    model = job.folder / "releases" / "000002" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CorruptArtefact, match=r"model\.safetensors"):
        audit_events(job.folder, canaries, sent)
