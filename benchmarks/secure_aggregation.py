"""What secure aggregation costs: bytes and seconds of a device, seconds of the server, with and without dropouts.

Every device of a cohort goes through the whole round, one after the other in this process, on one thread: keys, shares,
masks over all its neighbours, the list of survivors, shares that open. A device's seconds are the median of all; the
server's are all that it does itself, opening included, when nobody or a tenth of the devices drops out after it dealt.
Plain aggregation sends the same integers, packed, and adds them.

    python benchmarks/secure_aggregation.py                               100 and 1,000 devices
    python benchmarks/secure_aggregation.py --devices 100 --numbers 1000  one size alone
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from fedrecall.privacy.secure_aggregation import device, server
from fedrecall.privacy.secure_aggregation.neighbours import graph_for
from fedrecall.privacy.secure_aggregation.records import Setting

T = TypeVar("T")
BITS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--numbers", type=int, nargs="+", default=[1_000, 100_000, 951_510])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--colluding", type=float, default=0.05)
    parser.add_argument("--format", choices=["text", "json"], default="text")
    settings = parser.parse_args()
    rows = []
    for devices in settings.devices:
        for numbers in settings.numbers:
            rows.append(measure(devices, numbers, settings.dropout, settings.colluding))
            if settings.format == "text":
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if settings.format == "json":
        print(json.dumps(rows))


def measure(devices: int, numbers: int, dropout: float, colluding: float) -> dict[str, Any]:
    graph = graph_for(devices, dropout=dropout, colluding=colluding)
    setting = Setting(
        subject=bytes(32),
        numbers=numbers,
        bits=BITS,
        neighbours=graph.neighbours,
        threshold=graph.threshold,
        minimum=devices // 2,
    )
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(devices)]
    public = [key.public_key() for key in keys]

    def sign(number: int) -> Callable[[bytes], bytes]:
        return lambda message: keys[number].sign(message, ec.ECDSA(SHA256()))

    def verify(number: int, message: bytes, signature: bytes) -> bool:
        try:
            public[number].verify(signature, message, ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True

    took, up, down = [0.0] * devices, [0] * devices, [0] * devices
    central = {"all": 0.0, "dropout": 0.0}

    def timed(number: int, step: Callable[..., T], *given: Any) -> T:
        began = time.process_time()
        result = step(*given)
        took[number] += time.process_time() - began
        return result

    def centrally(parts: tuple[str, ...], step: Callable[..., T], *given: Any) -> T:
        began = time.process_time()
        result = step(*given)
        for part in parts:
            central[part] += time.process_time() - began
        return result

    both = ("all", "dropout")
    begun = [timed(n, device.advertise, setting, n, sign(n)) for n in range(devices)]
    round = centrally(both, server.Round, setting, [said for _, said in begun], verify)
    states, dealt = [mine for mine, _ in begun], []
    for n in range(devices):
        states[n], one = timed(n, device.deal, states[n], round.board(n), verify)
        dealt.append(one)
        up[n] += 32 * 3 + 104 + sum(len(part) for part in one.sealed.values())
        down[n] += devices * 40 + graph.neighbours * (32 * 3 + 104)
        _tell(f"{devices} devices, {numbers} numbers: dealt", n, devices)
    rng, plain = np.random.default_rng(0), np.zeros(numbers, dtype=np.int64)
    left = np.zeros(numbers, dtype=np.int64)
    gone = set(range(int(dropout * devices)))
    running = {part: np.zeros(numbers, dtype=np.uint16) for part in both}
    for n in range(devices):
        values = rng.integers(0, 1 << BITS, numbers, dtype=np.uint16)
        sealed = server.delivered(dealt, n)
        states[n], masked = timed(n, device.mask, states[n], sealed, values)
        parts = ("all",) if n in gone else both
        for part in parts:
            total = centrally((part,), server.masked_sum, round, [masked])[1]
            running[part] += total
        plain += values
        left += values if n not in gone else 0
        up[n] += masked.values.nbytes
        down[n] += sum(map(len, sealed.values()))
        _tell(f"{devices} devices, {numbers} numbers: masked", n, devices)
    for part, lost, expected in (("all", set(), plain), ("dropout", gone, left)):
        survivors = [n for n in range(devices) if n not in lost]
        vouched = [timed(n, device.vouch, states[n], survivors, sign(n)) for n in survivors]
        vouchers = {n: voucher for n, (_, voucher) in zip(survivors, vouched, strict=True)}
        opened = []
        for n, (mine, _) in zip(survivors, vouched, strict=True):
            heard = [vouchers[other] for other in round.graph[n] if other in vouchers]
            opened.append(timed(n, device.open_shares, mine, heard, verify)[1])
            if part == "all":
                up[n] += 104 + 34 * (len(opened[-1].seeds) + len(opened[-1].keys))
                down[n] += 104 * len(heard) + 4 * len(survivors)
        found = centrally((part,), server.opened_sum, round, range(devices), survivors, running[part], opened)
        if not np.array_equal(found, expected % (1 << BITS)):
            sys.exit("the opened sum is not the plain one")
    packed = numbers * BITS / 8
    return {
        "devices": devices,
        "numbers": numbers,
        "bits": BITS,
        "neighbours": graph.neighbours,
        "threshold": graph.threshold,
        "bytes_up": median(up),
        "bytes_down": median(down),
        "expansion": round_to(median(up) / packed),
        "plain_bytes_up": int(packed),
        "device_cpu_s": round_to(median(took)),
        "server_cpu_s": round_to(central["all"]),
        f"server_cpu_s_at_{dropout:g}": round_to(central["dropout"]),
    }


def round_to(value: float) -> float:
    return float(f"{value:.3g}")


def _tell(what: str, done: int, of: int) -> None:
    if done % 100 == 99 or done + 1 == of:
        print(f"{what} {done + 1} of {of}", file=sys.stderr)


if __name__ == "__main__":
    main()
