"""``fedrecall privacy ledger``: what it shows, and what it calls broken."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedrecall.cli.app import call
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.manifest import write_manifest
from fedrecall.protocol.plan import Mechanism, Plan

PLAN = Plan(
    unit="user",
    trust="central",
    delta=1e-5,
    devices=943,
    mechanisms=(
        Mechanism(name="popularity", noise_multiplier=4.0, clip_norm=1.0),
        Mechanism(name="rounds", noise_multiplier=8.0, clip_norm=0.5, steps=9),
    ),
)


def answer(capsys: Any, path: Path) -> dict[str, Any]:
    code = call(["privacy", "ledger", str(path), "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def corrupt(capsys: Any, path: Path, said: str) -> None:
    assert call(["privacy", "ledger", str(path)]) == 6
    out, err = capsys.readouterr()
    assert said in err and out == "" and "Traceback" not in err


def release(run: Path, plan: Plan, head: str | None) -> None:
    write_manifest(run, names=[], round=2, plan_digest=plan.digest(), ledger_head=head, simulated=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a ledger of one popularity and four rounds, released after them."""
    folder = tmp_path / "run"
    ledger = Ledger.create(folder / "ledger.jsonl", PLAN)
    ledger.charge("popularity", 0, "k")
    for n in range(4):
        ledger.charge("rounds", n, f"k{n}")
    release(folder, PLAN, ledger.head().sha256)
    return folder


def test_it_shows_what_was_spent_and_accounts_it(run: Path, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    found = answer(capsys, run)
    assert found["mechanisms"] == [
        {"name": "popularity", "spent": 1, "allowed": 1, "spent_ever": 1},
        {"name": "rounds", "spent": 4, "allowed": 9, "spent_ever": 4},
    ]
    rows = {row["name"]: row for row in found["adversaries"]}
    exact = gaussian_epsilon((1 / 16 + 4 / 64) ** 0.5, 1e-5)  # in closed form, not by the accountant
    assert exact <= rows["released-model"]["epsilon"] <= exact + 1e-3
    assert rows["server"]["epsilon"] is None and rows["server"]["reason"]
    assert found["digest"] == PLAN.digest() and found["head"]["lines"] == 6
    assert found["manifest_head"] == found["head"]["sha256"]
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_text_says_it_all_in_words(run: Path, capsys: Any) -> None:
    assert call(["privacy", "ledger", str(run)]) == 0
    out = capsys.readouterr().out
    for said in ("popularity", "against released-model", "No bound against server", "6 lines", "continues the head"):
        assert said in out, said


def test_a_file_alone_says_that_no_head_is_kept_elsewhere(run: Path, tmp_path: Path, capsys: Any) -> None:
    for suffix in ("", ".head"):
        shutil.copy(run / f"ledger.jsonl{suffix}", tmp_path / f"copy{suffix}")
    found = answer(capsys, tmp_path / "copy")
    assert found["manifest_head"] is None and "no head of this ledger is kept elsewhere" in found["rollback"]
    release(run, PLAN, None)
    assert answer(capsys, run / "ledger.jsonl")["manifest_head"] is None


def test_a_rollback_of_ledger_and_head_shows_against_the_manifest(run: Path, capsys: Any) -> None:
    ledger = Ledger.open(run / "ledger.jsonl", PLAN)
    old = {path: path.read_bytes() for path in run.glob("ledger.jsonl*")}
    ledger.charge("rounds", 4, "k4")
    assert "One of the charges since" in answer(capsys, run)["rollback"]
    release(run, PLAN, ledger.head().sha256)
    for path, data in old.items():
        path.write_bytes(data)
    corrupt(capsys, run, "was rolled back")
    corrupt(capsys, run / "ledger.jsonl", "was rolled back")
    release(run, replace(PLAN, delta=1e-6), None)
    corrupt(capsys, run, "another plan")


@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.jsonl.head", "manifest.json"])
def test_what_is_edited_is_corrupt(name: str, run: Path, capsys: Any) -> None:
    good = (run / name).read_bytes()
    (run / name).write_bytes(good[:40] + b"~" + good[41:])
    corrupt(capsys, run, str(run / name.removesuffix(".head")))


@pytest.mark.parametrize("name", ["ledger.jsonl", "ledger.jsonl.head"])
def test_what_is_gone_is_corrupt(name: str, run: Path, capsys: Any) -> None:
    (run / name).unlink()
    corrupt(capsys, run, "is missing")


def test_what_never_was_a_ledger_is_a_mistake_of_the_caller(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        assert call(["privacy", "ledger", str(path)]) == 2
        assert "holds no ledger" in capsys.readouterr().err


def test_the_ledger_of_a_device_is_not_that_of_a_server(tmp_path: Path, capsys: Any) -> None:
    DeviceLedger.create(tmp_path / "device.jsonl", Budget(epsilon=1.0, delta=1e-5))
    corrupt(capsys, tmp_path / "device.jsonl", "name a server's ledger")


def test_a_plan_that_renews_is_counted_by_its_latest_window_and_accounted_over_all(tmp_path: Path, capsys: Any) -> None:
    plan = replace(PLAN, renews="week")
    ledger = Ledger.create(tmp_path / "run" / "ledger.jsonl", plan)
    for day in (3, 10):
        for n in range(2):
            ledger.charge("rounds", n, f"{day}", datetime(2031, 3, day, tzinfo=UTC))
    found = answer(capsys, tmp_path / "run")
    assert (found["renews"], found["window"]) == ("week", "2031-03-10")
    assert found["mechanisms"][1] == {"name": "rounds", "spent": 2, "allowed": 9, "spent_ever": 4}
    exact = gaussian_epsilon((4 / 64) ** 0.5, 1e-5)
    assert exact <= found["adversaries"][0]["epsilon"] <= exact + 1e-3
    assert call(["privacy", "ledger", str(tmp_path / "run")]) == 0
    assert "in the week from 2031-03-10" in capsys.readouterr().out
