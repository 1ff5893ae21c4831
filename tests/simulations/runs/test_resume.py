"""Kills, Ctrl-C and full disks: what was lost is made up bit for bit, and the ledger neither forgets nor charges twice.

Real processes, real signals.
"""

import json
import random
import re
import resource
import shlex
import shutil
import signal
import time
from collections import Counter

import pytest

from fedrecall.server.training.checkpoint import load_latest

from .small_runs import flags, leftovers, small_run, start_cli

ROUNDS = 12
SETTINGS = (f"rounds.count={ROUNDS}", "rounds.evaluate_every=5", "server.checkpoint_every=2", "server.average=ema")
SAME = ("model.safetensors", "items.safetensors", "manifest.json", "ledger.jsonl", "config.toml")
COMMAND = ["run", "--dataset", "synthetic", *flags(*SETTINGS)]
SLOWEST_S = 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, uninterrupted: its files, and how long it took once its folder stood."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = small_run(folder, *SETTINGS)
    return {name: (folder / name).read_bytes() for name in SAME}, result


def assert_as_if_nothing_happened(folder, whole):
    files, result = whole
    for name, data in files.items():
        assert (folder / name).read_bytes() == data, name
    assert not leftovers(folder)
    found = json.loads((folder / "run.json").read_text())
    for part in ("metrics", "validation", "history", "privacy"):
        assert found[part] == json.loads(json.dumps(result[part])), part


def assert_never_less(folder):
    """What was charged covers every round that a checkpoint holds, each once."""
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    charged = Counter((e["mechanism"], e["round"]) for e in map(json.loads, lines[1:]))
    assert not charged or max(charged.values()) == 1
    saved = load_latest(folder / "checkpoints")
    if saved is None:
        return
    assert charged[("popularity", 0)] == charged[("second_moments", 0)] == 1
    assert all(charged[("rounds", number)] == 1 for number in range(saved.round))


def wait_until(process, reached):
    """Wait until ``reached()``, or until the process has ended."""
    deadline = time.monotonic() + SLOWEST_S
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline, "the run never came so far"
        time.sleep(0.01)


def end(process):
    out, err = process.communicate(timeout=SLOWEST_S)
    return process.returncode, out, err


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_were_not(kills, whole, tmp_path):
    """Each kill comes a random number of charges further on, and a random moment after that charge."""
    folder, rng = tmp_path / "run", random.Random(kills)
    places = []
    while len(places) < kills:
        # The first one waits for four rounds, so that a checkpoint beyond the start is there to go on from.
        goal = max(charges(folder) + rng.randint(1, ROUNDS // 2), 0 if places else 6)
        process = start_cli(*COMMAND, "--out", folder, "--resume")
        wait_until(process, lambda goal=goal: charges(folder) >= goal)
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        code, _, err = end(process)
        if code == 0:  # done before the kill: check it, and begin anew
            assert_as_if_nothing_happened(folder, whole)
            shutil.rmtree(folder)
            continue
        assert code == -signal.SIGKILL, err
        assert_never_less(folder)
        saved = load_latest(folder / "checkpoints")
        places.append(0 if saved is None else saved.round)
    assert any(places), f"no kill found a checkpoint beyond the start: {places}"
    small_run(folder, *SETTINGS, resume=True)
    assert_as_if_nothing_happened(folder, whole)


def charges(folder):
    """Return how many releases the folder's ledger was charged for."""
    path = folder / "ledger.jsonl"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def test_ctrl_c_names_the_command_that_goes_on_and_loses_nothing(whole, tmp_path):
    process = start_cli(*COMMAND, cwd=tmp_path, start_new_session=True)
    latest = tmp_path / "runs" / "latest"
    wait_until(process, lambda: (latest / "checkpoints" / "round-000006.safetensors").exists())
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert code == 3 and out == "" and "Traceback" not in err, err
    folder = latest.resolve()
    assert not (folder / "run.json").exists() and not leftovers(folder)
    assert_never_less(folder)
    (named,) = re.findall(r"`(fedrecall run [^`]*)`", err)
    assert named == f"fedrecall run --resume --out runs/{folder.name}"
    code, _, err = end(start_cli(*shlex.split(named)[1:], cwd=tmp_path))
    assert code == 0, err
    assert_as_if_nothing_happened(folder, whole)


def test_a_full_disk_is_named_leaves_nothing_half_written_and_can_be_resumed(whole, tmp_path):
    """No file may grow beyond 16 KB: the model does not fit, whatever comes before it does."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))

    folder = tmp_path / "run"
    process = start_cli(*COMMAND, "--out", folder, preexec_fn=limit)
    code, out, err = end(process)
    assert code == 3 and out == "" and "Traceback" not in err, err
    assert "no room" in err and "free some disk space" in err
    assert not leftovers(folder) and not (folder / "manifest.json").exists() and not (folder / "run.json").exists()
    assert_never_less(folder)
    small_run(folder, *SETTINGS, resume=True)
    assert_as_if_nothing_happened(folder, whole)
