"""Canaries in a training on Flower: enrolled, asked and summed as they are in one process, and they see as much."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.simulations.audit.checks import white_box
from fedrecall.simulations.audit.checks.sensitivity import sensitivity
from fedrecall.simulations.audit.planting.seeded_bugs import BUGS
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Watched
from fedrecall.simulations.training.quiet import silence

silence()

from fedrecall.simulations.training import flower  # noqa: E402 - Flower reads what silence() sets when it is first imported

from ....server.deployment.flower_nodes import flower as nodes_of  # noqa: E402

NO_NOISE = next(bug for bug in BUGS if bug.name == "no noise")
SHARDS = 3


def trial(folder: Path, engine: str) -> Trial:
    """One round of the suite's central world, which needs no start, with 40 canaries."""
    world = subject("central", 0)
    config = world.config
    changed = {
        "engine": engine,
        "flower": config.flower.model_copy(update={"shards": SHARDS}),
        "start": config.start.model_copy(update={"enabled": False}),
        "rounds": config.rounds.model_copy(update={"count": 1}),
        "threads": 2,
    }
    rounds = replace(world.plan.mechanism("rounds"), steps=1)
    plan = replace(world.plan, mechanisms=(rounds,))
    return Trial(replace(world, config=config.model_copy(update=changed), plan=plan), folder, 0, 40)


def check(trial: Trial, *, as_in: Watched) -> None:
    """The round's sum has every device's part, canaries' too, and the white box judges it alike."""
    (seen,), (expected,) = trial.watched.rounds, as_in.rounds
    assert seen.devices == expected.devices == len(seen.cohort) == 96 + 40
    spread = np.abs(expected.collected).max()
    np.testing.assert_allclose(seen.collected, expected.collected, rtol=0, atol=1e-6 * spread)
    # The same noise and the same gradient canaries on top of it.
    np.testing.assert_allclose(
        seen.released - seen.collected, expected.released - expected.collected, rtol=0, atol=1e-6
    )
    found = {attempt.name: attempt for attempt in white_box.rounds(trial)}
    assert found["white box: rounds"].verdict == "held"
    assert found["white box: rounds"].trials == 40


def check_blind(trial: Trial) -> None:
    """Without noise every canary shows: at sigma 0 the bound is far above any claim."""
    with NO_NOISE.plant():
        found = {attempt.name: attempt for attempt in white_box.rounds(trial)}
    assert found["white box: rounds"].verdict == "broken"


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are threads on Flower's in-memory grid: the messages and what the nodes do are real."""

    @contextmanager
    def threads(nodes: int, workers: int, address: str | None) -> Iterator[object]:
        with nodes_of([flower.client] * nodes) as grid:
            yield grid

    monkeypatch.setattr(flower, "_grid", threads)


def test_canaries_take_part_on_flower_s_grid(without_ray: None, tmp_path: Path) -> None:
    expected = trial(tmp_path / "process", "cohort").watched
    found = trial(tmp_path / "flower", "flower")
    check(found, as_in=expected)
    # What a canary holds leaves through its node: without its events the sum is another one.
    inside = found.enrolled[1].coins
    assert 10 < inside.sum() < 30
    outside = found.enrolled[0].store.select(found.enrolled[0].store.users() < 96)
    alone = trial(tmp_path / "alone", "flower")
    alone.__dict__["enrolled"] = (replace(found.enrolled[0], store=outside), found.enrolled[1])
    gone = found.watched.rounds[0].collected - alone.watched.rounds[0].collected
    clip = found.rounds.clip_norm or 0.0
    assert 0 < np.linalg.norm(gone) <= clip * inside.sum() * (1 + 1e-6)


def test_a_grid_without_noise_is_caught(without_ray: None, tmp_path: Path) -> None:
    check_blind(trial(tmp_path, "flower"))


@pytest.mark.parametrize("shards", [SHARDS, pytest.param("users", marks=pytest.mark.slow)])
def test_checks_that_ask_without_a_training_need_no_grid(shards: int | str, tmp_path: Path) -> None:
    one = trial(tmp_path, "flower")
    config = one.world.config.model_copy(
        update={"flower": one.world.config.flower.model_copy(update={"shards": shards})}
    )
    (found,) = sensitivity(Trial(replace(one.world, config=config), tmp_path / "again"))
    assert (found.verdict, found.score) == ("held", pytest.approx(1.0, abs=1e-4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_canaries_take_part_on_ray(tmp_path: Path) -> None:
    check(trial(tmp_path / "flower", "flower"), as_in=trial(tmp_path / "process", "cohort").watched)
    check_blind(trial(tmp_path / "bare", "flower"))
