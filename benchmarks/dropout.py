"""Devices that drop out of rounds at random: what recall loses, and whether the planned noise is there all the same.

Each seed trains once with every asked device answering, and once for each rate with that share of the asked devices
silent, drawn anew each round, from the same start. `recall@50` is on validation; `loss` is relative to no dropout, and
`low` and `high` are its 95 % bootstrap interval over users, all seeds together. `noise` is the spread of a round that
nobody answers, divided by the planned one; `epsilon` is what the ledger of the run says.

    python benchmarks/dropout.py --data-path FOLDER --preset open --format json
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.config import RunConfig, load_config
from fedrecall.simulations.evaluation.evaluate import Evaluation, evaluate
from fedrecall.simulations.evaluation.paired import paired_difference
from fedrecall.simulations.runs.recaller import ModelRecaller, item_vectors
from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.collect import Collect, Engine
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.world import World, cohort_of, threads, trained_names


class Silence(Exception):
    """The silent round was seen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--preset", default="user-eps8")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("-c", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    found: dict[float, list[Evaluation]] = {rate: [] for rate in (0.0, *given.rates)}
    noises, epsilons = [], set()
    for seed in range(given.seeds):
        config = load_config(
            None,
            given.preset,
            [f"rounds.count={given.rounds}", f"rounds.evaluate_every={given.rounds}", *given.overrides],
            dataset=given.dataset,
            data_path=given.data_path,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            noise, epsilon = of_seed(config, Path(folder), found)
        noises.append(noise)
        epsilons.add(epsilon)
        for rate, several in found.items():
            value = several[-1].metrics["recall@50"]
            print(f"seed {seed}, dropout {rate:.0%}: recall@50 {value:.4f}", file=sys.stderr)
    none = np.concatenate([e.per_user["recall@50"] for e in found[0.0]])
    rows = []
    for rate, several in found.items():
        own = np.concatenate([e.per_user["recall@50"] for e in several])
        difference = paired_difference(none, own, rng=np.random.default_rng(0))
        rows.append(
            {
                "dropout": rate,
                "recall@50": round(float(own.mean()), 4),
                "by_seed": [round(e.metrics["recall@50"], 4) for e in several],
                **{
                    name: round(difference[key] / float(none.mean()), 4)
                    for name, key in (("loss", "difference"), ("low", "low"), ("high", "high"))
                },
            }
        )
    answer = {
        "dataset": given.dataset,
        "preset": given.preset,
        "rounds": given.rounds,
        "noise": [None if n is None else round(n, 3) for n in noises],
        "epsilon": sorted(epsilons, key=str),
        "rows": rows,
    }
    if given.format == "json":
        print(json.dumps(answer, allow_nan=False))
        return
    for row in rows:
        print(" ".join(f"{name} {value}" for name, value in row.items()))
    print(f"noise {answer['noise']}, epsilon {answer['epsilon']}")


def of_seed(config: RunConfig, folder: Path, found: dict[float, list[Evaluation]]) -> tuple[float | None, float | None]:
    """Train one seed at each rate, add what validation says to ``found``; return silent noise and epsilon."""

    def quiet(name: str, done: int, total: int) -> None:
        """Say nothing."""

    dataset, split, world = prepare(config, quiet)
    started, epsilon = folder / "started", None
    for rate in found:
        out = folder / f"{rate}"
        if rate:
            shutil.copytree(started, out)
        engine = dropping(rate, None if rate else started)
        trained = train(world, out, resume=bool(rate), validate=None, progress=quiet, engine=engine)
        model = ModelRecaller(
            name=f"dropout {rate}",
            arrays=trained.arrays,
            vectors=item_vectors(trained.arrays, world.features),
            shape=world.shape,
            personal=config.personal.model_copy(update={"steps": 0}),
            towers=trained.towers,
            seed=config.seed,
        )
        found[rate].append(evaluate(model, split, "validation", catalogue=dataset.catalogue, ks=(10, 50)))
        spent = account_adversary(Ledger.open(out / "ledger.jsonl", world.plan).spent_plan(), "released-model").epsilon
        if rate and spent != epsilon:
            raise SystemExit(f"dropout of {rate:.0%} was charged epsilon {spent}, no dropout {epsilon}")
        epsilon = spent
    return silent_noise(world, folder), epsilon


def dropping(rate: float, keep: Path | None) -> Engine:
    """Return the batched engine with a random share of the asked devices silent; ``keep``: copy the start there."""

    @contextmanager
    def engine(world: World, out: Path) -> Iterator[Collect]:
        if keep is not None:
            shutil.copytree(out, keep)
        cohort = cohort_of(world, workers=threads(world.config))

        def collect(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> CohortSum:
            rng = np.random.default_rng(derive_seed(world.config.seed, "dropout", round))
            return cohort.collect(round, arrays, users[rng.random(len(users)) >= rate], clip_norm=clip_norm)

        yield collect

    return engine


def silent_noise(world: World, folder: Path) -> float | None:
    """Return the spread of the first round's change where nobody answers, over the planned; ``None`` without noise."""
    mechanism = world.plan.mechanism(ROUNDS)
    if not mechanism.noise_multiplier or mechanism.clip_norm is None:
        return None
    seen: list[Arrays] = []

    @contextmanager
    def engine(world: World, out: Path) -> Iterator[Collect]:
        def collect(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> CohortSum:
            seen.append({name: np.asarray(array) for name, array in arrays.items()})
            if len(seen) == 2:
                raise Silence
            return cohort_of(world).collect(round, arrays, users[:0], clip_norm=clip_norm)

        yield collect

    # A plain step of size 1, so that what moves is the round's noise over the expected cohort.
    server = world.config.server.model_copy(
        update={"optimiser": "sgd", "warmup_rounds": 0, "learning_rate": 1.0, "schedule": "constant"}
    )
    plain = replace(world, config=world.config.model_copy(update={"server": server}))
    with suppress(Silence):
        train(plain, folder / "silent", resume=False, validate=None, progress=lambda *_: None, engine=engine)
    before, after = seen
    moved = np.concatenate([(after[name] - before[name]).ravel() for name in trained_names(world)])
    expected = mechanism.sample_rate * world.plan.devices
    return float(np.std(moved) * expected / (mechanism.noise_multiplier * mechanism.clip_norm))


if __name__ == "__main__":
    main()
