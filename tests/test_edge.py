"""A deployment for real: server and devices as processes, each in its own folder, run by the documented commands."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Cohort
from fedrecall.models.shape import ModelShape
from fedrecall.server.deployment.job import Job
from fedrecall.server.recall.release import load_release

from .house import ROOT

EDGE = ROOT / "examples" / "edge"
DEVICES, ROUNDS, ITEMS = 5, 3, 64


def script(name: str, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run a script of the example, which ends with ``code``, and return the JSON on its last line."""
    command = [sys.executable, str(EDGE / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_five_devices_end_where_the_batched_path_ends(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    answer = script("deploy.py", folder, "--open", "--devices", str(DEVICES), "--rounds", str(ROUNDS))
    assert (answer["state"], answer["rounds"], answer["refused"]) == ("finished", ROUNDS, {})
    assert answer["rounds_charged"] == [ROUNDS] * DEVICES
    job = Job.load(folder / "server")
    expected, start = batched(job, tmp_path / "batched"), job.start()
    found = load_release(folder / "server" / "releases" / "latest")
    assert not found.manifest.simulated and found.manifest.round == ROUNDS
    for name in start:
        np.testing.assert_allclose(found.model[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(found.model[name] - start[name]).max() for name in start) > 1e-3


@pytest.mark.slow
def test_the_recipe_ends_with_a_list_for_each_device(tmp_path: Path) -> None:
    """As a newcomer calls it: the preset as it is, with the private start, on made-up items."""
    answer = script("deploy.py", tmp_path / "edge", "--devices", "3", "--rounds", "1", "--deadline", "600")
    assert (answer["state"], answer["rounds"], answer["refused"]) == ("finished", 1, {})
    assert answer["start"] == ["popularity", "second_moments"] and answer["rounds_charged"] == [1] * 3
    assert 7.99 < answer["epsilon"]["released-model"] <= 8.0 and answer["epsilon"]["server"] is None
    events = (tmp_path / "edge" / "events-0.csv").read_text().split()[1:]
    assert len(set(answer["recommended"])) == 10 and not set(answer["recommended"]) & set(events)
    assert 0.0 <= answer["recall@10"] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["strangers", "node-killed", "server-killed", "straggler", "no-room"])
def test_every_fault_has_the_outcome_that_is_promised(scenario: str, tmp_path: Path) -> None:
    """The script fails where the outcome is another one: docs/deploy.md lists them."""
    assert script("faults.py", tmp_path, scenario)["scenario"] == scenario


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "code", "broken"), [(1, 0, set()), (0, 5, {"deployed: white box"})])
def test_canaries_see_a_server_without_noise(noise: int, code: int, broken: set[str], tmp_path: Path) -> None:
    """18 coins: without noise the white box bounds mu far above its claim; a sound server alarms once in 1,000."""
    found = script(
        "canaries.py", tmp_path / "edge", "--rounds", "6", "--deadline", "600", "--noise", str(noise), code=code
    )
    assert broken <= set(found["broken"]) and bool(found["broken"]) == bool(broken)
    assert found["as_flipped"] and found["refused"] == {"budget": 18 - found["in"]}


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "code", "broken"), [(1, 0, set()), (0, 5, {"deployed: white box"})])
def test_canary_events_see_devices_without_noise(noise: int, code: int, broken: set[str], tmp_path: Path) -> None:
    """Unit ``interaction``: what the auditor's devices really sent, by their honest app or one that adds no noise."""
    arguments = ("--unit", "interaction", "--rounds", "3", "--deadline", "600", "--noise", str(noise))
    found = script("canaries.py", tmp_path / "edge", *arguments, code=code)
    assert broken <= set(found["broken"]) and bool(found["broken"]) == bool(broken)
    assert found["updates"] == [3, 3, 3] and not found["refused"] and found["canaries"] > 150


def batched(job: Job, folder: Path) -> dict[str, np.ndarray]:
    """Return where the job ends in one process, from the events that the script makes up."""
    histories = [np.random.default_rng([7, device]).choice(ITEMS, size=20, replace=False) for device in range(DEVICES)]
    lengths = [len(history) for history in histories]
    events = sum(lengths)
    store = EventStore(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate(histories).astype(np.int32),
        times=None,
        types=np.zeros(events, dtype=np.int8),
        weights=np.ones(events, dtype=np.float32),
        n_items=ITEMS,
        type_names=("event",),
    )
    cohort = Cohort(
        store=store,
        shape=ModelShape(**job.task.shape),
        features=None,
        local=LocalConfig(**job.task.local),
        unit="user",
        trained=job.task.trained,
        seed=job.task.seed,
        device=torch.device("cpu"),
    )
    folder.mkdir()
    task = replace(job.task, plan=replace(job.task.plan, simulated=True))
    again = replace(job, folder=folder, task=task)
    again.save(job.start())
    state = again.run(
        lambda round, arrays, users, clip: cohort.collect(round, arrays, users, clip_norm=clip), Counter()
    )
    return state.released()
