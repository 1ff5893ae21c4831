import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedrecall.server.training.optimiser import OptState, average, init, step


def state_of(round, *, averaged=True, value=1.0):
    optimiser = OptState(step=round, first={"item.a/b": np.full(3, value)}, second={"s": np.array(value)})
    arrays = {"item.a/b": np.full((2, 3), value, dtype=np.float32), "s": np.array(np.nan)}
    return Checkpoint(
        round=round,
        arrays=arrays,
        optimiser=optimiser,
        average=average(ServerConfig(), None, arrays, step=1, rounds=1) if averaged else None,
        ledger_head="ab" * 32,
        config_digest="config",
        plan_digest="plan",
        extra={"history": [{"round": 1, "loss": 0.1}], "note": "ż"},
    )


def same(a, b):
    """Whether two mappings of arrays are equal to the bit."""
    return set(a) == set(b) and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes()) for n in a
    )


@pytest.mark.parametrize("averaged", [True, False])
def test_every_bit_comes_back(tmp_path, averaged):
    assert load_latest(tmp_path / "none") is None
    saved = state_of(12, averaged=averaged)
    path = save_checkpoint(tmp_path / "checkpoints", saved)
    assert path.name == "round-000012.safetensors"
    found = load_latest(tmp_path / "checkpoints")
    for field in ("round", "ledger_head", "config_digest", "plan_digest", "extra"):
        assert getattr(found, field) == getattr(saved, field)
    assert same(found.arrays, saved.arrays) and found.optimiser.step == 12
    assert same(found.optimiser.first, saved.optimiser.first)
    assert same(found.optimiser.second, saved.optimiser.second)
    assert (found.average is None) == (not averaged)
    if averaged:
        assert found.average.count == 1 and same(found.average.arrays, saved.average.arrays)


@pytest.mark.parametrize("kind", ["sgd", "fedavgm", "fedadam"])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path, kind):
    config = ServerConfig(optimiser=kind, average="ema")

    def run(start, stop):
        arrays, optimiser, mean = start
        for i in range(optimiser.step, stop):
            update = {"w": np.random.default_rng(i).standard_normal((5, 4)).astype(np.float32)}
            arrays, optimiser = step(config, optimiser, arrays, update, rounds=8)
            mean = average(config, mean, arrays, step=i + 1, rounds=8)
        return arrays, optimiser, mean

    arrays = {"w": np.ones((5, 4), dtype=np.float32)}
    straight = run((arrays, init(config, arrays), None), 8)
    model, optimiser, mean = run((arrays, init(config, arrays), None), 3)
    state = Checkpoint(
        round=3,
        arrays=model,
        optimiser=optimiser,
        average=mean,
        ledger_head=None,
        config_digest="",
        plan_digest="",
    )
    save_checkpoint(tmp_path, state)
    found = load_latest(tmp_path)
    resumed = run((found.arrays, found.optimiser, found.average), 8)
    assert same(straight[0], resumed[0]) and same(straight[2].arrays, resumed[2].arrays)


def test_the_newest_are_kept_and_an_older_round_is_refused(tmp_path):
    for number in (1, 2, 10, 1_000_000):
        save_checkpoint(tmp_path, state_of(number), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["round-000010.safetensors", "round-1000000.safetensors"]
    assert load_latest(tmp_path).round == 1_000_000
    save_checkpoint(tmp_path, state_of(1_000_000, value=2.0))
    assert load_latest(tmp_path).arrays["item.a/b"][0, 0] == 2.0
    with pytest.raises(UsageError, match="holds round 1000000, later than 11: resume"):
        save_checkpoint(tmp_path, state_of(11))


def test_every_damaged_byte_is_noticed_and_the_way_back_works(tmp_path):
    save_checkpoint(tmp_path, state_of(1))
    path = save_checkpoint(tmp_path, state_of(2))
    data = path.read_bytes()
    rng = random.Random(3)
    places = [rng.randrange(len(data)) for _ in range(300)] + list(range(len(data) - 80, len(data)))
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        with pytest.raises(CorruptArtefact, match=r"Delete .*round-000002\.safetensors to resume"):
            load_latest(tmp_path)
    for cut in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptArtefact, match="Delete"):
            load_latest(tmp_path)
    path.unlink()
    assert load_latest(tmp_path).round == 1


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedrecall.server.training.checkpoint import Checkpoint, load_latest, save_checkpoint
from fedrecall.server.training.optimiser import OptState
folder = Path(sys.argv[1])
found = load_latest(folder)
number = found.round if found else 0
while True:
    number += 1
    arrays = {"w": np.full(200_000, number, dtype=np.float32)}
    state = Checkpoint(round=number, arrays=arrays, optimiser=OptState(step=number, first=arrays, second={}),
        average=None, ledger_head=None, config_digest="", plan_digest="")
    save_checkpoint(folder, state)
    print(number, flush=True)
"""


def test_killed_at_twenty_random_moments_nothing_acknowledged_is_lost(tmp_path):
    rng = random.Random(4)
    acknowledged = 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.06))
        process.kill()
        rest, _ = process.communicate()
        lines = (first + rest).split("\n")[:-1]
        assert int(lines[0]) > acknowledged, "it resumed before its own last word"
        acknowledged = int(lines[-1])
        state = load_latest(tmp_path)
        assert acknowledged <= state.round <= acknowledged + 1
        assert (state.arrays["w"] == state.round).all() and (state.optimiser.first["w"] == state.round).all()
        acknowledged = state.round
    save_checkpoint(tmp_path, state_of(acknowledged + 1))
    assert len(os.listdir(tmp_path)) == 2, "what killed saves left is cleared"
