import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedrecall.privacy.accounting import account_adversary
from fedrecall.privacy.ledger import Ledger
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, FedrecallError, PlanError, UsageError
from fedrecall.protocol.plan import Mechanism, Plan

REPO = Path(__file__).resolve().parents[2]
PLAN = Plan(
    unit="user",
    trust="central",
    delta=1e-5,
    devices=943,
    mechanisms=(
        Mechanism(name="popularity", noise_multiplier=3.0, clip_norm=1.0),
        Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=0.5, steps=4),
    ),
)


def head_of(path: Path) -> Path:
    return path.with_name(path.name + ".head")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with one popularity and two rounds charged."""
    ledger = Ledger.create(tmp_path / "ledger.jsonl", PLAN)
    ledger.charge("popularity", 0, "k")
    ledger.charge("rounds", 0, "k0")
    ledger.charge("rounds", 1, "k1")
    return tmp_path / "ledger.jsonl"


class TestCharging:
    def test_what_was_charged_is_replayed(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        assert ledger.spent() == {"popularity": 1, "rounds": 2}
        assert [m.steps for m in ledger.spent_plan().mechanisms] == [1, 2]
        spent = account_adversary(ledger.spent_plan(), "released-model").epsilon
        whole = account_adversary(PLAN, "released-model").epsilon
        assert spent is not None and whole is not None and 0 < spent < whole

    def test_it_is_on_disk_before_charge_returns(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        assert ledger.charge("rounds", 2, "k2")
        assert Ledger.open(path, PLAN).spent() == ledger.spent() == {"popularity": 1, "rounds": 3}

    def test_file_and_folder_are_synced_before_charge_returns(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, replace_file = os.fsync, os.replace

        def watch(descriptor: int) -> None:
            calls.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def watch_replace(source: str, target: str) -> None:
            calls.append("replace")
            replace_file(source, target)

        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc to see which file is synced")
        ledger = Ledger.open(path, PLAN)
        monkeypatch.setattr(os, "fsync", watch)
        monkeypatch.setattr(os, "replace", watch_replace)
        ledger.charge("rounds", 2, "k2")
        folder = str(path.parent.resolve())
        assert calls[:2] == [str(path.resolve()), folder]  # the entry, before the head
        assert calls[-2:] == ["replace", folder] and calls[2].startswith(folder + "/")

    def test_past_the_plan_it_refuses(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        ledger.charge("rounds", 2, "k2")
        ledger.charge("rounds", 3, "k3")
        with pytest.raises(BudgetExhausted, match="all of its 4 releases") as caught:
            ledger.charge("rounds", 4, "k4")
        assert caught.value.exit_code == 4
        with pytest.raises(BudgetExhausted):
            Ledger.open(path, PLAN).charge("rounds", 4, "k4")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 4

    def test_a_simulated_replay_is_charged_once_even_at_the_limit(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        assert not ledger.charge("rounds", 1, "k1")
        assert ledger.charge("rounds", 1, "other noise")
        assert ledger.charge("rounds", 3, "k3")
        assert not Ledger.open(path, PLAN).charge("rounds", 3, "k3")
        assert ledger.spent()["rounds"] == 4

    def test_in_a_deployment_a_retry_is_charged_again(self, tmp_path: Path) -> None:
        plan = replace(PLAN, simulated=False)
        ledger = Ledger.create(tmp_path / "ledger.jsonl", plan)
        assert ledger.charge("rounds", 0, "nonce") and ledger.charge("rounds", 0, "nonce")
        assert Ledger.open(tmp_path / "ledger.jsonl", plan).spent()["rounds"] == 2

    def test_unknown_mechanisms_and_rounds_are_refused(self, path: Path) -> None:
        ledger = Ledger.open(path, PLAN)
        with pytest.raises(PlanError, match="no mechanism 'metric'"):
            ledger.charge("metric", 0, "k")
        with pytest.raises(PlanError, match="round is -1"):
            ledger.charge("rounds", -1, "k")

    def test_another_plan_is_refused(self, path: Path) -> None:
        with pytest.raises(PlanError, match="another plan"):
            Ledger.open(path, replace(PLAN, delta=1e-6))

    def test_a_second_process_cannot_spend_the_same_budget(self, path: Path) -> None:
        one, two = Ledger.open(path, PLAN), Ledger.open(path, PLAN)
        one.charge("rounds", 2, "k2")
        with pytest.raises(FedrecallError, match="another process"):
            two.charge("rounds", 2, "mine")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 3

    def test_create_never_overwrites(self, path: Path) -> None:
        with pytest.raises(UsageError, match="a ledger exists"):
            Ledger.create(path, PLAN)
        path.unlink()
        with pytest.raises(UsageError, match="a ledger exists"):
            Ledger.create(path, PLAN)

    def test_it_holds_no_data_but_the_events_of_the_plan(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert Plan.from_dict(lines[0]["plan"]) == PLAN
        for entry in lines[1:]:
            assert entry.keys() == {"previous", "sha256", "mechanism", "round", "key"}


class TestTampering:
    def test_every_one_byte_edit_deletion_insertion_and_truncation_is_detected(self, path: Path) -> None:
        rng = random.Random(0)
        for file in (path, head_of(path)):
            good = file.read_bytes()
            bad: list[bytes] = [good[:i] for i in range(len(good))]
            for i, byte in enumerate(good):
                bad += [good[:i] + bytes([(byte + d) % 256]) + good[i + 1 :] for d in (1, 32, 128)]
                bad.append(good[:i] + good[i + 1 :])
                if file != path or i < len(good) - 1:
                    bad.append(good[: i + 1] + bytes([rng.randrange(256)]) + good[i + 1 :])
            missed = []
            for mutant in bad:
                if mutant == good:
                    continue
                file.write_bytes(mutant)
                try:
                    Ledger.open(path, PLAN)
                    missed.append(mutant)
                except CorruptArtefact:
                    pass
            file.write_bytes(good)
            assert missed == []
        assert Ledger.open(path, PLAN).spent() == {"popularity": 1, "rounds": 2}

    def test_missing_files_fail_closed(self, path: Path) -> None:
        head = head_of(path).read_bytes()
        head_of(path).unlink()
        with pytest.raises(CorruptArtefact, match=r"\.head is missing") as caught:
            Ledger.open(path, PLAN)
        assert caught.value.exit_code == 6
        head_of(path).write_bytes(head)
        path.unlink()
        with pytest.raises(CorruptArtefact, match="is missing"):
            Ledger.open(path, PLAN)

    def test_lines_cannot_be_moved_dropped_or_repeated(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        for order in ([0, 2, 1, 3], [0, 1, 3], [0, 1, 2, 2], [1, 2, 3], [0, 1, 2, 3, 3], [0, 0, 1, 2, 3]):
            path.write_bytes(b"".join(lines[i] for i in order))
            with pytest.raises(CorruptArtefact):
                Ledger.open(path, PLAN)

    def test_a_rollback_of_both_files_shows_against_a_head_kept_elsewhere(self, path: Path) -> None:
        old = path.read_bytes(), head_of(path).read_bytes()
        ledger = Ledger.open(path, PLAN)
        kept_before = ledger.head()
        ledger.charge("rounds", 2, "k2")
        kept = ledger.head()
        assert Ledger.open(path, PLAN, at_least=kept).spent()["rounds"] == 3
        assert Ledger.open(path, PLAN, at_least=kept_before).spent()["rounds"] == 3
        path.write_bytes(old[0])
        head_of(path).write_bytes(old[1])
        assert Ledger.open(path, PLAN).spent()["rounds"] == 2  # invisible from inside, as documented
        with pytest.raises(CorruptArtefact, match="rolled back"):
            Ledger.open(path, PLAN, at_least=kept)


class TestCrashes:
    def test_after_the_append_and_before_the_head_the_entry_counts(self, path: Path) -> None:
        old_head = head_of(path).read_bytes()
        Ledger.open(path, PLAN).charge("rounds", 2, "k2")
        head_of(path).write_bytes(old_head)
        ledger = Ledger.open(path, PLAN)
        assert ledger.spent()["rounds"] == 3
        assert not ledger.charge("rounds", 2, "k2")
        ledger.charge("rounds", 3, "k3")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 4

    def test_two_entries_beyond_the_head_are_no_crash(self, path: Path) -> None:
        old_head = head_of(path).read_bytes()
        ledger = Ledger.open(path, PLAN)
        ledger.charge("rounds", 2, "k2")
        ledger.charge("rounds", 3, "k3")
        head_of(path).write_bytes(old_head)
        with pytest.raises(CorruptArtefact, match="its head counts 4"):
            Ledger.open(path, PLAN)

    def test_an_edited_entry_beyond_the_head_is_detected(self, path: Path) -> None:
        old_head = head_of(path).read_bytes()
        Ledger.open(path, PLAN).charge("rounds", 2, "k2")
        head_of(path).write_bytes(old_head)
        path.write_bytes(path.read_bytes().replace(b'"k2"', b'"k1"'))
        with pytest.raises(CorruptArtefact, match="breaks the chain"):
            Ledger.open(path, PLAN)

    def test_a_torn_append_never_returned_and_is_dropped(self, path: Path) -> None:
        before, old_head = path.read_bytes(), head_of(path).read_bytes()
        Ledger.open(path, PLAN).charge("rounds", 2, "k2")
        after = path.read_bytes()
        for size in range(len(before) + 1, len(after)):
            path.write_bytes(after[:size])
            head_of(path).write_bytes(old_head)
            assert Ledger.open(path, PLAN).spent()["rounds"] == 2
            assert path.read_bytes() == before
        assert Ledger.open(path, PLAN).charge("rounds", 2, "k2")

    def test_a_crash_between_the_two_files_of_a_new_ledger(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.jsonl"
        Ledger.create(path, PLAN)
        head_of(path).unlink()
        Ledger.open(path, PLAN).charge("rounds", 0, "k0")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_disk_that_refuses_charges_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ledger = Ledger.open(path, PLAN)

        def refuse(descriptor: int, data: bytes) -> int:
            with open("/dev/full", "wb", buffering=0) as full:
                return full.write(data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with pytest.raises(FedrecallError, match=r"No space left on device.*free space"):
                ledger.charge("rounds", 2, "k2")
        assert ledger.spent()["rounds"] == 2
        assert ledger.charge("rounds", 2, "k2")
        assert Ledger.open(path, PLAN).spent()["rounds"] == 3


CHARGER = """
import sys
from pathlib import Path
from fedrecall.privacy.ledger import Ledger
from fedrecall.protocol.plan import Mechanism, Plan
mechanism = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=1.0, steps=10**9)
plan = Plan(unit="user", trust="central", delta=1e-5, devices=10, mechanisms=(mechanism,))
path = Path(sys.argv[1])
ledger = Ledger.open(path, plan) if path.exists() else Ledger.create(path, plan)
n = ledger.spent()["rounds"]
print("ready", flush=True)
while True:
    ledger.charge("rounds", n, "key")
    print(n, flush=True)  # the release
    n += 1
"""


def kill_and_count(path: Path, kills: int, seed: int) -> tuple[int, int]:
    """Charge in a process, kill it at random, go on with the same ledger; return released and spent."""
    rng = random.Random(seed)
    mechanism = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=1.0, steps=10**9)
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=10, mechanisms=(mechanism,))
    released: set[int] = set()
    spent = 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", CHARGER, str(path)], stdout=subprocess.PIPE, cwd=REPO, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        seen = {int(line) for line in process.stdout.read().split("\n")[:-1]}
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        assert not seen & released  # recovery never gives a spent release away again
        released |= seen
        spent = Ledger.open(path, plan).spent()["rounds"]
        assert len(released) <= spent <= len(released) + kills
        assert max(released, default=-1) < spent
    return len(released), spent


def test_forty_kills_never_forget_a_release(tmp_path: Path) -> None:
    released, spent = kill_and_count(tmp_path / "ledger.jsonl", 40, seed=0)
    assert 0 < released <= spent


@pytest.mark.slow
def test_a_thousand_kills_never_forget_a_release(tmp_path: Path) -> None:
    released, spent = kill_and_count(tmp_path / "ledger.jsonl", 1000, seed=1)
    print(f"1000 kills: released {released}, on disk {spent}")
    assert 0 < released <= spent
