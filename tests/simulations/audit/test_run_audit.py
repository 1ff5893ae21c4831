"""``fedrecall audit`` on whole run folders: sound, tampered with, incomplete, interrupted."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedrecall
from fedrecall.cli.app import call
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.simulations.audit import run_audit
from fedrecall.simulations.audit.page import render
from tests.simulations.runs.small_runs import small_run

TINY = ("rounds.count=3", "start.items=40", "privacy.clip_norm=0.05")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks have tests of their own."""
    monkeypatch.setattr(run_audit, "_ATTACKS_S", 0.0)
    monkeypatch.setattr(run_audit, "_CANARIES", 30)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    small_run(folder, *TINY)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "run")
    yield tmp_path / "run"


def audit(folder: Path, **options: Any) -> dict[str, Any]:
    return fedrecall.audit(folder, **options)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {a["name"]: a["verdict"] for a in result["attempts"]}


def folder_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_audit, "CHECKS", {})


def test_a_sound_run_holds_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["audit", str(run), "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((run / "audit.json").read_text())
    found = verdicts(said)
    assert said["verdict"] == "held" and "broken" not in found.values()
    assert {"folder: release", "folder: ledger", "folder: claims", "folder: replay"} <= set(found)
    assert {name for name, verdict in found.items() if verdict == "held"} >= {
        "folder: replay",
        "noise: rounds",
        "noise: in the run",
        "white box: rounds",
        "white box: second_moments",
        "sampler",
        "sensitivity",
        "claims: epsilon",
    }
    page = (run / "audit.html").read_text()
    assert "Nothing that this run claims was broken" in page and page == render(said)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    # Every attack with an AUC is a row of the picture.
    learned = page[page.index("What each attack can tell") : page.index("<figcaption>0.5 is a coin")]
    attacks = [attempt["name"] for attempt in said["attempts"] if attempt["metric"] == "auc" and attempt["trials"]]
    assert attacks and all(f">{name}</text>" in learned for name in attacks)
    for attempt in said["attempts"]:
        assert attempt["power"] and attempt["what"]
    assert not (run / "private" / "audit").exists()


def test_a_claim_that_is_too_small_is_broken(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_only(monkeypatch)
    content = json.loads((run / "run.json").read_text())
    content["privacy"]["adversaries"][0]["epsilon"] = 4.0
    (run / "run.json").write_text(json.dumps(content))
    assert call(["audit", str(run)]) == 5
    assert "BROKEN: folder: claims" in capsys.readouterr().out
    assert "1 of this run's claims did not hold" in (run / "audit.html").read_text().replace("\n", " ")


def test_a_changed_release_is_broken(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_only(monkeypatch)
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "model.safetensors").write_bytes(bytes(data))
    assert verdicts(audit(run))["folder: release"] == "broken"


def test_a_charge_that_is_missing_is_broken(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_only(monkeypatch)
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:2] + lines[3:]))
    assert verdicts(audit(run))["folder: ledger"] == "broken"


def test_an_earlier_ledger_put_back_whole_is_broken(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fedrecall.privacy.ledger.ledger import Ledger

    folder_only(monkeypatch)
    plan = Ledger.read(run / "ledger.jsonl").plan
    (run / "ledger.jsonl").unlink(), (run / "ledger.jsonl.head").unlink()
    Ledger.create(run / "ledger.jsonl", plan).charge("popularity", 0, "another key")
    found = audit(run)
    assert verdicts(found)["folder: ledger"] == "broken"
    assert "never charged" in next(a["what"] for a in found["attempts"] if a["name"] == "folder: ledger")


def test_a_release_of_other_noise_is_not_what_the_seed_gives(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise at half the size, with everything else in order: nothing in the folder shows it but the replay."""
    from fedrecall.server.training import rounds
    from fedrecall.simulations.audit.planting.seeded_bugs import BUGS

    folder_only(monkeypatch)
    before = rounds.gaussian_sum
    with BUGS[1].plant():
        small_run(tmp_path / "run", *TINY)
    assert rounds.gaussian_sum is before
    found = verdicts(audit(tmp_path / "run"))
    assert found.pop("folder: replay") == "broken"
    assert {verdict for name, verdict in found.items() if name.startswith("folder")} == {"held"}


def test_ids_of_users_in_a_log_are_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_only(monkeypatch)
    (run / "logs" / "extra.log").write_text("refused an update of user-17\n")
    assert verdicts(audit(run))["folder: private texts"] == "broken"


def test_a_copy_without_data_says_what_it_could_not_test(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "private")
    content = json.loads((run / "run.json").read_text())
    content["dataset"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="--attach"):
        audit(run)
    found = audit(run, attach=True)
    said = verdicts(found)
    assert said["folder: replay"] == said["attacks"] == "not tested"
    assert said["noise: rounds"] == said["white box: rounds"] == said["folder: ledger"] == "held"
    assert found["settings"]["data"].startswith("generated events in their place")
    assert any("data are missing" in fact for fact in found["not_tested"])


def test_an_interrupted_audit_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def step(name: str, stop: bool) -> Any:
        def check(_: Any) -> list[Any]:
            asked.append(name)
            if stop and len(asked) == 2:
                raise KeyboardInterrupt
            return []

        return check

    monkeypatch.setattr(run_audit, "CHECKS", {"first": step("first", True), "second": step("second", True)})
    with pytest.raises(KeyboardInterrupt):
        audit(run)
    assert (run / "private" / "audit").is_dir() and not (run / "audit.json").exists()
    audit(run)
    assert asked == ["first", "second", "second"]
    assert (run / "audit.json").exists() and not (run / "private" / "audit").exists()


def test_a_run_of_an_earlier_version_is_told_from_an_altered_one(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["config"]["start"]["content"], record["config"]["privacy"]["adaptive_clip"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"earlier fedrecall, .* know privacy\.adaptive_clip, start\.content:"):
        audit(run)
    record["config"]["start"]["power"] = 0.9
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(CorruptArtefact, match="not the configuration"):
        audit(run)
    assert not (run / "audit.json").exists()
