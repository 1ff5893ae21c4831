"""Canaries in a deployment, judged by the files that its server leaves: sums read back, coins, verdicts."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.folder import task_of as task_for
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum, joint_norm
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import unpack
from fedrecall.server.config import ServerConfig, StartSettings
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.publish import Publisher
from fedrecall.server.training import rounds
from fedrecall.server.training.validation import schema_of, validate_update
from fedrecall.simulations.audit.deployments.devices import DeployedCanaries, audit_deployed, released_sums, verdicts
from fedrecall.simulations.audit.watching.watch import flat

from ....server.deployment.small_jobs import SGD
from ..planting.planted_noise import noise_times

CANARIES, HONEST, STEPS = 3, 2, 24
MECHANISM = Mechanism(name="rounds", clip_norm=0.5, noise_multiplier=1.24, steps=STEPS)
SHAPE = ModelShape(
    n_items=40, n_features=0, n_types=1, dim=8, window=4, blocks=1, heads=2, hidden=8, user_dim=4, user_hidden=8
)
NAMES = ("item.id.weight", "transformer.scale", "transformer.w")


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shapes: tuple[tuple[int, ...], ...] = ((40, 8), (), (30,))
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in zip(NAMES, shapes, strict=True)}


def plan_of(mechanism: Mechanism = MECHANISM) -> Plan:
    return Plan(unit="user", trust="central", delta=1e-5, devices=CANARIES + HONEST, mechanisms=(mechanism,))


def job_in(folder: Path, mechanism: Mechanism = MECHANISM, config: ServerConfig = SGD, seed: int = 1) -> Job:
    """A job whose noise and coins come from ``seed``."""
    task = task_for(plan_of(mechanism), SHAPE, LocalConfig(blocks=1), NAMES, seed)
    folder.mkdir(parents=True)
    Job(folder=folder, task=task, config=config, deadline_s=1.0, wait_s=0.0).save(arrays())
    return Job.load(folder)


def train(job: Job, canaries: DeployedCanaries, sums: dict[int, Arrays] | None = None, silent: int = -1) -> None:
    """Run the job's rounds over canary devices and honest ones, whose part is in a direction of each round."""
    answers = [unpack(canaries.answers(device, job), what="canary") for device in range(CANARIES)]

    def collect(round: int, model: Arrays, cohort: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        rng, parts = np.random.default_rng([9, round]), []
        for found, header in answers:
            if header["coins"][round]:
                parts.append({name: np.asarray(found[name][round]) for name in NAMES})
        for _ in range(HONEST):
            part = {name: rng.standard_normal(model[name].shape) for name in NAMES}
            scale = (clip_norm or 0.0) / joint_norm(part)
            parts.append({name: np.asarray(array * scale, np.float32) for name, array in part.items()})
        parts = [] if round == silent else parts
        if sums is not None:
            sums[round] = {name: np.sum([p[name] for p in parts], axis=0, dtype=np.float64) for name in NAMES}
        for number, part in enumerate(parts):
            yield Update(round=round, nonce=f"{round}-{number}", arrays=part)

    items = tuple(f"i{n}" for n in range(40))
    digest = job.task.plan.digest()
    publish = Publisher(folder=job.folder, items=items, features=None, plan_digest=digest, simulated=True, keep=99)
    refusals: Counter[str] = Counter()
    job.run(collect, refusals, publish)
    assert not refusals


def broken(folder: Path, factor: float, seed: int) -> dict[str, bool]:
    """Whether each attempt raises an alarm on a deployment of 72 coins."""
    job, canaries = job_in(folder, seed=seed), DeployedCanaries.flip(STEPS, CANARIES, seed)
    with noise_times(rounds, factor):
        train(job, canaries)
    attempts = audit_deployed(job.folder, canaries)
    assert all(attempt.trials == STEPS * CANARIES for attempt in attempts)
    shutil.rmtree(folder)
    return {attempt.name.removeprefix("deployed: "): attempt.verdict == "broken" for attempt in attempts}


@pytest.mark.parametrize(
    "config",
    [
        SGD,
        ServerConfig(optimiser="sgd", learning_rate=0.3, learning_rate_scales={"item.": 5.0}, warmup_rounds=3),
        ServerConfig(optimiser="fedavgm", learning_rate=0.5, momentum=0.8, schedule="cosine"),
    ],
    ids=["sgd", "scaled", "momentum"],
)
def test_releases_give_each_round_s_noised_sum_back(config: ServerConfig, tmp_path: Path) -> None:
    """Oracle: what the devices sent, and the same noise drawn again; a model in float32 rounds steps that are small."""
    job, sums = job_in(tmp_path / "job", config=config), {}
    train(job, DeployedCanaries.flip(STEPS, CANARIES, 0), sums)
    found = dict(released_sums(job))
    assert sorted(found) == list(range(STEPS))
    for round, total in found.items():
        noise = SeededNoise(job.task.seed, job.task.plan.digest(), "rounds", round)
        expected = flat(gaussian_sum(sums[round], MECHANISM, noise), sorted(NAMES))
        np.testing.assert_allclose(total, expected, rtol=0, atol=1e-3 * 0.5 * 1.24)


def test_a_sound_server_holds_and_one_without_noise_or_with_a_third_of_it_does_not(tmp_path: Path) -> None:
    """Power at 72 coins and mu 0.81: 100 % without noise, 98.9 % for a third of it (20,000 drawn sets of scores)."""
    sound = broken(tmp_path / "sound", 1.0, 0)
    assert sound == {"white box": False, "Gaussian mu": False, "Clopper-Pearson": False}
    bare = broken(tmp_path / "bare", 0.0, 0)
    assert bare["white box"] and bare["Gaussian mu"]
    assert broken(tmp_path / "third", 1 / 3, 0)["white box"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "factor", "low", "high"),
    [(24, 0, 1, 1), (24, 1 / 3, 0.96, 1), (24, 1 / 2, 0.21, 0.4), (24, 2 / 3, 0.003, 0.06), (8, 1 / 3, 0.13, 0.31)],
)
def test_power_of_72_coins_is_what_the_page_says(epsilon: float, factor: float, low: float, high: float) -> None:
    """300 sets of scores each, within 3.5 standard errors of 100, 98.9, 30.4, 2.6 and 21.9 %, those of 20,000."""
    sigma = math.sqrt(STEPS) / gaussian_mu(epsilon, 1e-5)
    rng, plan, alarms = np.random.default_rng(8), plan_of(replace(MECHANISM, noise_multiplier=sigma)), 0
    for _ in range(300):
        inside = rng.random(STEPS * CANARIES) < 0.5
        # What honest devices send adds 0.04 or so.
        scores = inside + math.hypot(factor * sigma, 0.04) * rng.standard_normal(inside.size)
        alarms += verdicts(plan, scores[inside], scores[~inside])[0].verdict == "broken"
    assert low <= alarms / 300 <= high


def test_verdicts_accept_the_right_scale_and_reject_two_thirds_of_it() -> None:
    """2,000 coins bound mu to within 10 %; more noise than planned is no leak."""
    rng, plan = np.random.default_rng(3), plan_of()
    inside = rng.random(2000) < 0.5
    found = {}
    for factor in (2 / 3, 1.0, 3 / 2):
        scores = inside + factor * 1.24 * rng.standard_normal(2000)
        found[factor] = {a.name: a for a in verdicts(plan, scores[inside], scores[~inside])}
    white = {factor: attempts["deployed: white box"] for factor, attempts in found.items()}
    assert [white[factor].verdict for factor in (2 / 3, 1.0, 3 / 2)] == ["broken", "held", "held"]
    assert found[2 / 3]["deployed: Gaussian mu"].verdict == "broken"
    assert white[1.0].detail["mu"] == pytest.approx(1 / 1.24, rel=0.12)
    assert white[1.0].detail["mu"] < white[1.0].detail["claimed_mu"] == pytest.approx(1 / 1.24)
    assert white[1.0].detail["whole_run"] < white[1.0].detail["whole_run_claimed"]
    # Few coins: even perfect guesses would leave a claim standing that assumes no curve.
    few = {a.name: a.verdict for a in verdicts(plan, scores[inside][:30], scores[~inside][:30])}
    assert few["deployed: Clopper-Pearson"] == "shows" and few["deployed: white box"] == "held"


def test_null_scores_raise_no_alarm() -> None:
    """At most 0.1 % of sound audits may: 3 or more of 300 have a probability of 0.4 %."""
    rng, plan, alarms = np.random.default_rng(5), plan_of(), 0
    for _ in range(300):
        inside = rng.random(72) < 0.5
        scores = inside + 1.24 * rng.standard_normal(72)
        alarms += any(a.verdict == "broken" for a in verdicts(plan, scores[inside], scores[~inside]))
    assert alarms < 3


def test_coins_are_fair_and_directions_fit_the_clip(tmp_path: Path) -> None:
    job, canaries = job_in(tmp_path / "job"), DeployedCanaries.flip(4000, CANARIES, 3)
    # Five standard errors: of each rate, and of the correlation of each pair of devices and of successive rounds.
    assert np.abs(canaries.coins.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(4000)
    signs = np.where(canaries.coins, 1.0, -1.0)
    assert np.abs(signs.T @ signs / 4000 - np.eye(CANARIES)).max() < 5 / np.sqrt(4000)
    assert np.abs((signs[1:] * signs[:-1]).mean(axis=0)).max() < 5 / np.sqrt(4000)
    with pytest.raises(UsageError, match="4000 rounds"):
        canaries.answers(0, job)
    canaries = DeployedCanaries.flip(STEPS, CANARIES, 3)
    packed = [unpack(canaries.answers(device, job), what="canary") for device in range(CANARIES)]
    assert [header["coins"] for _, header in packed] == canaries.coins.T.tolist()
    every = []
    for round in range(STEPS):
        own = [{name: np.asarray(found[name][round]) for name in NAMES} for found, _ in packed]
        for number, part in enumerate(own):
            assert joint_norm(part) == pytest.approx(0.5, rel=1e-6)
            update = Update(round=round, nonce=str(number), arrays=part)
            validate_update(update, schema_of(arrays()), round=round, seen_nonces=set(), clip_norm=0.5)
        every.append(np.array([flat(part, sorted(NAMES)) for part in own]) / 0.5)
        np.testing.assert_allclose(every[-1] @ every[-1].T, np.eye(CANARIES), atol=1e-6)
    # From round to round others: what honest devices learn of one tells nothing of the next.
    assert np.abs(every[0] @ every[1].T).max() < 0.3


def test_a_round_that_released_nothing_is_passed_over(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", replace(MECHANISM, min_survivors=1))
    canaries = DeployedCanaries.flip(STEPS, CANARIES, 0)
    train(job, canaries, silent=7)
    assert [round for round, _ in released_sums(job)] == [round for round in range(STEPS) if round != 7]
    assert {attempt.trials for attempt in audit_deployed(job.folder, canaries)} == {(STEPS - 1) * CANARIES}


@pytest.mark.parametrize(
    ("mechanism", "config", "need"),
    [
        (MECHANISM, ServerConfig(), "optimiser"),
        (MECHANISM, SGD.model_copy(update={"average": "tail"}), "no average"),
        (MECHANISM, SGD.model_copy(update={"learning_rate_scales": {"item.": 0.0}}), "factor 0"),
        (replace(MECHANISM, sampling="poisson", sample_rate=0.5), SGD, "everyone"),
        (replace(MECHANISM, noise_multiplier=0.0), SGD, "noise"),
    ],
)
def test_jobs_that_releases_do_not_tell_of_are_refused(
    mechanism: Mechanism, config: ServerConfig, need: str, tmp_path: Path
) -> None:
    job, canaries = job_in(tmp_path / "job", mechanism, config), DeployedCanaries.flip(STEPS, CANARIES, 0)
    for refuse in (lambda: canaries.answers(0, job), lambda: audit_deployed(job.folder, canaries)):
        with pytest.raises(UsageError, match=need):
            refuse()


def test_a_private_start_is_refused(tmp_path: Path) -> None:
    numbers = {"compared": 2, "reach": 8.0, "exponent": 0.5, "power": 0.5, "cut": 1.0, "content": 0.0}
    more = {"content_items": 1, "decay": 0.9, "prior": 1.0, "scale": 1.0, "popularity": 0.1}
    job = replace(job_in(tmp_path / "job"), starting=StartSettings(**numbers, **more))
    with pytest.raises(UsageError, match=r"start\.enabled=false"):
        list(released_sums(job))


def test_files_that_are_gone_altered_or_uncharged_are_refused(tmp_path: Path) -> None:
    job, canaries = job_in(tmp_path / "job"), DeployedCanaries.flip(STEPS, CANARIES, 0)
    train(job, canaries)
    releases, ledger = job.folder / "releases", job.folder / "ledger.jsonl"
    model = releases / "000003" / "model.safetensors"
    sound = model.read_bytes()
    model.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CorruptArtefact, match=r"model\.safetensors"):
        audit_deployed(job.folder, canaries)
    model.write_bytes(sound)
    assert audit_deployed(job.folder, canaries)
    other = job_in(tmp_path / "other")
    shutil.copytree(releases, other.folder / "releases", symlinks=True)
    few = replace(other, task=replace(other.task, plan=plan_of(replace(MECHANISM, steps=2))))
    train(few, DeployedCanaries.flip(2, CANARIES, 0))
    with pytest.raises(CorruptArtefact, match="another plan, or was never charged"):
        audit_deployed(other.folder, canaries)
    shutil.rmtree(releases / "000001")
    with pytest.raises(UsageError, match="keep them all"):
        audit_deployed(job.folder, canaries)
    ledger.unlink()
    with pytest.raises(CorruptArtefact):
        audit_deployed(job.folder, canaries)
