"""kill -9 of a device that answers rounds: what it sent is charged, its tower loads, and a repeated ask costs nothing.

Each life is a process of its own, forked so that it starts at once; what it says it sent is read from a pipe after it
was killed, as a server would have it.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedrecall.client.device.enrolment import LEDGER
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.protocol.files import sha256_of
from fedrecall.protocol.tensors import pack

from ..training.engine_contract import CASES, make_world
from .small_devices import UNLIMITED, enrol_one, world_of

USER, ROUNDS = 7, 100_000


@contextmanager
def life(folder: Path, asks: Iterator[bytes]) -> Iterator[tuple[int, int]]:
    """A process that answers one ask after the other and says of each that it was sent; yields its id and the pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with suppress(BaseException):
            for ask in asks:
                os.write(write, sha256_of(DeviceFolder(folder).answer(ask)).encode())
        os._exit(1)
    os.close(write)
    try:
        yield pid, read
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_device_killed_again_and_again_never_counts_too_little(kills: int, simulated: bool, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a fork holds no thread of its parent
    case = CASES["user, one step, clipped, towers"]
    long = tuple(replace(mechanism, steps=ROUNDS) for mechanism in make_world(case).plan.mechanisms)
    world, task, arrays = world_of(case, simulated=simulated, mechanisms=long)
    folder = enrol_one(tmp_path, world, task, USER, UNLIMITED)
    header = {"mechanism": "rounds", "clip_norm": task.plan.mechanism("rounds").clip_norm, "task": task.digest()}
    rng, round, lost = random.Random(kills), 0, 0
    sent: dict[int, str] = {}

    def ask(round: int) -> bytes:
        return pack(arrays, header | {"round": round})

    for _ in range(kills):
        with life(folder, map(ask, range(round, ROUNDS))) as (pid, pipe):
            first = os.read(pipe, 64)
            time.sleep(rng.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
            # Until the pipe's end: whatever the kill let out.
            told = first + b"".join(iter(lambda pipe=pipe: os.read(pipe, 1 << 16), b""))
        answers = [told[begin : begin + 64].decode() for begin in range(0, len(told), 64)]
        assert answers, "the device never answered"
        sent |= dict(enumerate(answers, start=round))
        round += len(answers)
        ledger = DeviceLedger.open(folder / LEDGER)
        charged = ledger.head().lines - 1
        assert charged >= len(sent), "an answer left that the ledger does not know"
        lost += charged > len(sent)
        device = DeviceFolder(folder)
        assert all(bool(weight.isfinite().all()) for weight in device.tower().values())
        last = device._state()[2]
        if last == sha256_of(ask(round - 1)):
            assert sha256_of(device.answer(ask(round - 1))) == sent[round - 1], "a repeated ask got other bytes"
            assert DeviceLedger.open(folder / LEDGER).head().lines - 1 == charged, "and was charged again"
    if simulated:
        assert charged <= round + 1, "simulated rounds have one key each"
    assert DeviceLedger.open(folder / LEDGER).head().lines - 1 <= round + kills + 1
