"""``fedrecall server``: what an operator types, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecall.cli.app import call
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.invitation import Invitation
from fedrecall.server.deployment.job import Job
from fedrecall.server.training.content_features import content_features

from ..server.deployment.test_roster import public_key

SMALL = ["-c", "model.dim=8", "-c", "model.heads=2", "-c", "model.hidden=16", "-c", "local.negatives=8"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = call(["server", *map(str, arguments), "--format", "json"])
        out, said = capsys.readouterr()
        assert out.count("\n") <= 1
        return code, json.loads(out) if out else None, said

    return run


def init(tmp_path: Path, *more: object, catalogue: str = "item\nx\ny\nz\n") -> list[object]:
    file = tmp_path / "items.csv"
    file.write_text(catalogue)
    place = ["--catalogue", file, "--devices", 4, "--address", "recall.example.org:9092"]
    return ["init", tmp_path / "job", *place, *SMALL, *more]


def key_file(tmp_path: Path, name: str = "key.pub") -> Path:
    path = tmp_path / name
    path.write_bytes(public_key() + b" somebody@home\n")
    return path


def test_a_job_that_cannot_be_made_is_a_request_and_no_defect(run: Any, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("in the way")
    given = init(tmp_path)
    given[1] = tmp_path / "job" / "deeper"
    code, _, said = run(*given)
    assert code == 2 and "cannot be made (Not a directory)" in said


def test_a_job_in_earnest_keeps_its_epsilon_and_is_its_owners_alone(run: Any, tmp_path: Path) -> None:
    code, made, _ = run(*init(tmp_path, "-c", "rounds.count=5", "--every", 3600, "--deadline", 30))
    assert code == 0
    job = Job.load(tmp_path / "job")
    plan = job.task.plan
    assert not plan.simulated and plan.unit == "user"
    steps = [("popularity", 1), ("second_moments", 1), ("rounds", 5)]
    assert [(m.name, m.steps) for m in plan.mechanisms] == steps
    assert account_adversary(plan, "released-model").epsilon == pytest.approx(8.0, abs=1e-3)
    assert made["adversaries"][0]["epsilon"] <= 8.0
    assert (job.every_s, job.deadline_s, job.quorum) == (3600.0, 30.0, 2)
    assert job.starting is not None and job.starting.compared == 3 and job.content() is None
    assert made["start"] == {"compared": 3, "terms": 0, "bytes": job.bytes_of_start()}
    # Whoever serves releases may start before the server does.
    assert list((tmp_path / "job" / "releases").iterdir()) == []
    assert "item.id.weight" not in job.task.trained, "rounds train what the preset's rounds train"
    assert not any(name.startswith("user.") for name in job.start())
    assert made["bytes_of_an_update"] == sum(job.start()[name].nbytes for name in job.task.trained)
    assert (tmp_path / "job").stat().st_mode & 0o077 == 0


def test_an_invitation_is_the_keys_and_a_device_can_enrol_with_it(run: Any, tmp_path: Path) -> None:
    run(*init(tmp_path))
    first, second = key_file(tmp_path), key_file(tmp_path, "other.pub")
    out = tmp_path / "invitation.json"
    numbers = [
        run("invite", tmp_path / "job", "--public-key", key, "--out", out)[1]["number"]
        for key in (first, second, first)
    ]
    assert numbers == [0, 1, 0]
    invitation = Invitation.load(out)
    job = Job.load(tmp_path / "job")
    assert (invitation.number, invitation.address) == (0, "recall.example.org:9092")
    assert invitation.task.digest() == job.task.digest()
    assert invitation.items == ("x", "y", "z")
    assert invitation.root_certificates == (tmp_path / "job" / "tls" / "ca.pem").read_text()
    assert "somebody" not in out.read_text() and "PRIVATE" not in out.read_text()
    (tmp_path / "device").mkdir(mode=0o700)
    device = DeviceFolder.enrol(tmp_path / "device", invitation, Budget(epsilon=9.0, delta=1e-5))
    assert device.task.digest() == job.task.digest()


def test_features_and_event_types_reach_the_device(run: Any, tmp_path: Path) -> None:
    catalogue = "item,kinds\nx,a|b\ny,b\nz,\n"
    options = ["--categories", "kinds", "--event-weight", "view=1", "--event-weight", "buy=3.5"]
    options += ["-c", "model.features=true", "-c", "start.enabled=false"]
    assert run(*init(tmp_path, *options, catalogue=catalogue))[0] == 0
    out = tmp_path / "invitation.json"
    run("invite", tmp_path / "job", "--public-key", key_file(tmp_path), "--out", out)
    invitation = Invitation.load(out)
    assert dict(invitation.event_weights) == {"view": 1.0, "buy": 3.5}
    assert invitation.features is not None
    assert invitation.features.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert "item.features.weight" in invitation.task.trained


def test_titles_and_categories_are_content_of_the_start(run: Any, tmp_path: Path) -> None:
    catalogue = "item,name,kinds\nx,Red Rose (1990),a|b\ny,Red Fox (1995),b\nz,,\n"
    code, made, _ = run(*init(tmp_path, "--title", "name", "--categories", "kinds", catalogue=catalogue))
    job = Job.load(tmp_path / "job")
    content = job.content()
    assert code == 0 and content is not None and made["start"]["terms"] == content.features.shape[1]
    expected = content_features(["Red Rose (1990)", "Red Fox (1995)", ""], [("a", "b"), ("b",), ()])
    assert expected is not None
    np.testing.assert_array_equal(content.features.toarray(), expected.toarray())
    run("invite", tmp_path / "job", "--public-key", key_file(tmp_path), "--out", tmp_path / "invitation.json")
    assert Invitation.load(tmp_path / "invitation.json").features is None, "content is the server's alone"


def test_without_a_start_the_whole_budget_is_the_rounds_and_they_train_everything(run: Any, tmp_path: Path) -> None:
    code, made, _ = run(*init(tmp_path, "-c", "start.enabled=false"))
    job = Job.load(tmp_path / "job")
    assert code == 0 and job.starting is None and made["start"] is None
    assert [m.name for m in job.task.plan.mechanisms] == ["rounds"]
    assert {"item.id.weight"} < set(job.task.trained)
    assert job.start()["item.id.weight"].any()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--preset", "interaction-eps8"], "start.enabled=false"),
        (["-c", "start.items=1"], "start.items"),
        (["-c", 'rounds.train=["user."]'], "rounds.train"),
        (["-c", "rounds.cohrt=3"], "rounds.cohort"),
        (["--quorum", 5], "quorum is 5"),
        (["--event-weight", "view"], "--event-weight is 'view'"),
        (["--event-weight", "view=0"], "event_weights"),
        (["--release", "ftp://x"], "https"),
        (["--address", "recall.example.org"], "HOST:PORT"),
    ],
)
def test_a_job_that_no_device_could_serve_is_refused_and_leaves_nothing(
    more: list[object], said: str, run: Any, tmp_path: Path
) -> None:
    code, _, words = run(*init(tmp_path, *more))
    assert code == 2 and said in words
    assert not (tmp_path / "job").exists()


def test_a_folder_in_use_another_kind_of_key_and_too_many_devices_are_refused(run: Any, tmp_path: Path) -> None:
    arguments = init(tmp_path, "--devices", 1)
    assert run(*arguments)[0] == 0
    code, _, words = run(*arguments)
    assert code == 2 and "in use" in words
    text = tmp_path / "text.pub"
    text.write_text("no key")
    invite = ["invite", tmp_path / "job", "--out", tmp_path / "invitation.json", "--public-key"]
    assert run(*invite, text)[0] == 2
    assert run(*invite, key_file(tmp_path))[0] == 0
    code, _, words = run(*invite, key_file(tmp_path, "other.pub"))
    assert code == 2 and "all 1 devices" in words


def test_status_and_up_of_what_is_no_job(run: Any, tmp_path: Path) -> None:
    assert run("status", tmp_path)[0] == 6
    assert run("up", tmp_path)[0] == 6
    run(*init(tmp_path))
    code, found, _ = run("status", tmp_path / "job")
    assert (code, found["state"], found["up"]) == (0, "down", False)
    assert found["devices"] == {"planned": 4, "enrolled": 0, "connected": None}
    code, _, words = run("up", tmp_path / "job", "--address", "nowhere")
    assert code == 2 and "HOST:PORT" in words
    assert call(["server", "status", str(tmp_path / "job")]) == 0
