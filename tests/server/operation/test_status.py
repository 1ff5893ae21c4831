"""Status is for the operator; metrics are for anybody, and hold nothing that tells who took part."""

import re
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_json_atomic
from fedrecall.protocol.lock import only_one
from fedrecall.server.deployment.job import RUNNING, UP, Job
from fedrecall.server.deployment.publish import Publisher
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.operation.metrics import metrics_text, serve_metrics
from fedrecall.server.operation.status import STATE, Spending, status

from ..deployment.small_jobs import ITEMS, POISSON, ROUNDS, job_in
from ..deployment.test_roster import OPEN_SSH

METRICS = {
    *("rounds_done", "rounds_planned", "devices_planned", "release_round", "release_timestamp_seconds"),
    *("up_seconds", "restarts_total", "epsilon_spent"),
}


def trained(folder: Path, mechanism=ROUNDS) -> Job:
    job = job_in(folder, mechanism)
    publish = Publisher(
        folder=folder, items=ITEMS, features=None, plan_digest=job.task.plan.digest(), simulated=False, keep=3
    )
    job.run(lambda round, arrays, cohort, clip: [], Counter(), publish)
    key = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*OPEN_SSH)
    Roster(folder, devices=4).enrol(key)
    refused = None if mechanism is POISSON else {"late": 2}
    write_json_atomic(folder / "progress.json", {"state": "round", "connected": 3, "refused": refused})
    write_json_atomic(folder / STATE, {"pid": 1, "began": 100.0, "starts": {"superlink": 3, "door": 1}})
    return job


def test_status_of_a_job_that_runs_and_of_one_that_does_not(tmp_path: Path) -> None:
    job = trained(tmp_path)
    down = status(tmp_path, Spending(tmp_path))
    assert (down["up"], down["state"], down["uptime_s"], down["devices"]["connected"]) == (False, "down", None, None)
    with only_one(tmp_path / UP, "busy"):
        assert status(tmp_path, Spending(tmp_path))["state"] == "starting"
        with only_one(tmp_path / RUNNING, "busy"):
            found = status(tmp_path, Spending(tmp_path))
    assert (found["up"], found["state"]) == (True, "round")
    assert found["rounds"] == {"done": 4, "planned": 4}
    assert found["devices"] == {"planned": 4, "enrolled": 1, "connected": 3}
    assert found["refused"] == {"late": 2} and not found["cohorts_secret"]
    assert found["release"]["round"] == 4
    assert found["restarts"] == {"superlink": 2, "door": 0}
    expected = account_adversary(job.task.plan, "released-model").epsilon
    assert found["privacy"][0]["epsilon"] == pytest.approx(expected)


def test_a_job_that_has_not_begun_has_spent_nothing(tmp_path: Path) -> None:
    job_in(tmp_path)
    found = status(tmp_path, Spending(tmp_path))
    assert (found["privacy"], found["release"], found["rounds"]["done"]) == ([], None, 0)
    assert "fedrecall_rounds_done 0" in metrics_text(found)


def test_epsilon_follows_the_ledger(tmp_path: Path) -> None:
    spending = Spending(tmp_path)
    job = job_in(tmp_path)
    asked = []

    def watched(round, arrays, cohort, clip):
        rows = spending.now(job.task.plan)
        asked.append(rows[0]["epsilon"] if rows else None)
        return []

    job.run(watched, Counter())
    last = spending.now(job.task.plan)[0]["epsilon"]
    assert asked[0] == 0.0 and all(np.diff([*asked, last]) > 0)


@pytest.mark.parametrize("mechanism", [ROUNDS, POISSON], ids=["everyone", "poisson"])
def test_metrics_are_those_on_the_list_and_do_not_change_with_who_is_there(mechanism, tmp_path: Path) -> None:
    """Rule 7: two worlds that differ in who is connected and who was refused have the same metrics."""
    trained(tmp_path, mechanism)
    found = status(tmp_path, Spending(tmp_path))
    text = metrics_text(found)
    names = {re.split(r"[{ ]", line)[0].removeprefix("fedrecall_") for line in text.splitlines() if line[0] != "#"}
    assert names <= METRICS and len(names) == len(METRICS) - 1  # it is not up
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .*|fedrecall_\w+(\{(\w+="[^"]*",?)+\})? [0-9.e+-]+', line), line
    write_json_atomic(tmp_path / "progress.json", {"state": "waiting", "connected": 1, "refused": {"norm": 7}})
    key = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*OPEN_SSH)
    Roster(tmp_path, devices=4).enrol(key)
    assert metrics_text(status(tmp_path, Spending(tmp_path))) == text


def test_metrics_are_served_to_this_machine_alone(tmp_path: Path) -> None:
    trained(tmp_path)
    with serve_metrics(tmp_path, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert answer.read().decode() == metrics_text(status(tmp_path, Spending(tmp_path)))
        with pytest.raises(urllib.error.HTTPError, match="404") as wrong:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/job.json", timeout=10)
        wrong.value.close()
        with pytest.raises(UsageError, match="cannot be used"), serve_metrics(tmp_path, port):
            pass
        (tmp_path / "ledger.jsonl").write_text("{}\n")
        with pytest.raises(urllib.error.HTTPError, match="503") as broken:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
        broken.value.close()
