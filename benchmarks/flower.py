"""User-rounds a second on Flower's simulation engine: shards of users on virtual nodes, against a node for each user.

Both ask for the same updates of the same users over the same grid; the clock starts when the workers have loaded. The
best of several rounds counts, since other work on a machine can only slow one down.

    python benchmarks/flower.py --data-path FOLDER --format json     on MovieLens-1M
    python benchmarks/flower.py                                      on synthetic data
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.config import load_config
from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.quiet import silence
from fedrecall.simulations.training.start import start_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, help="the folder of MovieLens-1M; without it synthetic data")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each kind, the best of which counts")
    parser.add_argument("--single-users", type=int, default=64, help="users of a round with a node each")
    arguments = parser.parse_args()
    shards = rate(arguments.data_path, "null", arguments.rounds, None)
    single = rate(arguments.data_path, "'users'", arguments.rounds, arguments.single_users)
    found = {
        "shard_user_rounds_per_s": round(shards, 1),
        "node_per_user_rounds_per_s": round(single, 1),
        "ratio": round(shards / single, 1),
    }
    if arguments.format == "json":
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))


def rate(data_path: Path | None, shards: str, rounds: int, users: int | None) -> float:
    """Return user-rounds a second of the best round, over ``users`` users, or all."""
    silence()
    from fedrecall.simulations.training import flower

    config = load_config(
        None,
        None,
        [f"flower.shards={shards}", "start.enabled=false"],
        dataset="synthetic" if data_path is None else "ml-1m",
        data_path=data_path,
        engine="flower",
    )
    _, _, world = prepare(config, lambda *_: None)
    arrays, _ = start_arrays(world, lambda _: None, lambda *_: None)
    asked = np.arange(min(users or world.store.n_users, world.store.n_users))
    seconds = []
    with tempfile.TemporaryDirectory() as folder, flower.simulation(world, Path(folder)) as collect:
        for number in range(1 + rounds):  # the first round warms up
            began = time.perf_counter()
            found = collect(number, arrays, asked, config.privacy.clip_norm)
            count = found.devices if isinstance(found, CohortSum) else drained(found)
            seconds.append(time.perf_counter() - began)
            assert count == len(asked)
    return len(asked) / min(seconds[1:])


def drained(updates: Iterable[object]) -> int:
    return sum(1 for _ in updates)


if __name__ == "__main__":
    main()
