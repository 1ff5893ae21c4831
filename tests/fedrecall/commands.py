"""Commands as the tests of the command line give them, and the parts of a run folder that they read."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedrecall.cli.app import call


def answer(capsys, *arguments):
    """Run a command that must succeed; return its JSON after checking that it is one strict line."""
    code = call([*arguments, "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def write_run(
    folder: Path, *, hits, epsilon=2.0, unit="user", sha256="a" * 64, protocol="loo", seed=0, first_user=0
) -> Path:
    """Write the parts of a run folder that comparing and indexing read; the values are invented."""
    (folder / "private").mkdir(parents=True)
    run = {
        "dataset": {"name": "toy", "users": len(hits), "items": 30, "interactions": 99, "sha256": sha256},
        "evaluation": {"protocol": protocol, "context": "train", "catalogue": "file", "masked": "context"},
        "privacy": {
            "unit": unit,
            "simulated": True,
            "adversaries": [
                {
                    "name": "released-model",
                    "epsilon": epsilon,
                    "delta": 1e-5,
                    "adjacency": "add_remove",
                    "sampling": "unamplified",
                    "accountant": "PLD",
                    "reason": "everyone takes part",
                },
                {
                    "name": "server",
                    "epsilon": None,
                    "delta": 1e-5,
                    "adjacency": "add_remove",
                    "sampling": "unamplified",
                    "accountant": "none",
                    "reason": "it is trusted",
                },
            ],
        },
        "metrics": {"recall@10": float(np.mean(hits)), "recall@50": 0.5, "ndcg@10": 0.1},
        "baselines": {"most_popular": {"recall@10": 0.1, "recall@50": 0.2, "ndcg@10": 0.05}},
        "seed": seed,
    }
    (folder / "run.json").write_text(json.dumps(run))
    columns = {"users": np.arange(len(hits)) + first_user, "recall@10": np.asarray(hits, dtype=float)}
    np.savez(folder / "private" / "per_user.npz", **columns, **{"ease/recall@10": np.ones(len(hits))})
    return folder
