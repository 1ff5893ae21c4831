"""Every sampler, trust model and clip through a whole run: the plan that is enforced is the one that is reported."""

import json

import pytest

from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import ConfigError
from fedrecall.protocol.plan import Plan
from fedrecall.server.training.checkpoint import load_latest
from fedrecall.simulations.config import load_config
from fedrecall.simulations.runs.run import run
from fedrecall.simulations.training.plan import plan_for

from ..runs.small_runs import small_config, small_run

SAME = ("model.safetensors", "items.safetensors", "ledger.jsonl")
ROUNDS = 7
PLANS = {
    "poisson": ("rounds.cohort=120",),
    "fixed size": ("rounds.cohort=120", "rounds.sampling=fixed_size"),
    "limited, independent noise": ("rounds.cohort=200", "rounds.sampling=limited"),
    "limited, correlated noise": ("rounds.cohort=200", "rounds.sampling=limited", "rounds.bands=null"),
    "adaptive clip": ("privacy.adaptive_clip.quantile=0.4", "rounds.cohort=200"),
}


class Killed(Exception):
    """Stands for a kill at a known round."""


def settings(name):
    return (f"rounds.count={ROUNDS}", "server.checkpoint_every=3", "rounds.evaluate_every=7", *PLANS[name])


@pytest.mark.parametrize("name", PLANS)
def test_a_run_keeps_to_its_plan_and_a_resumed_one_ends_with_the_same_bits(name, tmp_path):
    result = small_run(tmp_path / "whole", *settings(name))
    ledger = Ledger.read(tmp_path / "whole" / "ledger.jsonl")
    plan = ledger.spent_plan()
    assert plan.mechanism("rounds").steps == ROUNDS and all(m.steps == 1 for m in plan.mechanisms[:-1])
    # The epsilon of the report is the accountant's of what the ledger was charged for, start included.
    epsilon = next(row.epsilon for row in account(plan) if row.name == "released-model")
    stated = next(row for row in result["privacy"]["adversaries"] if row["name"] == "released-model")
    assert epsilon == stated["epsilon"] and 8 - 0.02 <= epsilon <= 8

    def kill(stage, done, total):
        if (stage, done) == ("rounds", 5):
            raise Killed

    with pytest.raises(Killed):
        run(small_config(*settings(name)), out=tmp_path / "killed", progress=kill)
    assert load_latest(tmp_path / "killed" / "checkpoints").round == 3
    assert Ledger.read(tmp_path / "killed" / "ledger.jsonl").spent()["rounds"] == 5
    small_run(tmp_path / "killed", *settings(name), resume=True)
    for file in SAME:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_limited_participation_needs_no_secret(tmp_path):
    """Against who sees the cohorts it costs what it costs against who does not; a Poisson plan costs more."""
    found = {}
    for name in ("poisson", "limited, correlated noise"):
        rows = small_run(tmp_path / name, *settings(name))["privacy"]["adversaries"]
        found[name] = {row["name"]: row["epsilon"] for row in rows}
    limited, poisson = found["limited, correlated noise"], found["poisson"]
    assert limited["network"] == limited["released-model"]
    assert poisson["network"] > 1.2 * poisson["released-model"]


def test_interactions_with_a_trusted_server_spend_the_same_with_less_noise_in_the_sum(tmp_path):
    plans = {}
    for trust in ("local", "central"):
        result = small_run(tmp_path / trust, f"privacy.trust={trust}", preset="interaction-eps8")
        rows = {row["name"]: row for row in result["privacy"]["adversaries"]}
        plans[trust] = result["privacy"]["mechanisms"], rows["released-model"]["epsilon"]
        assert (rows["server"]["epsilon"] is None) == (trust == "central")
        assert rows["released-model"]["sampling"] == "unamplified"
    assert plans["local"] == plans["central"]


def test_the_clip_moves_and_its_way_is_in_the_history(tmp_path):
    result = small_run(tmp_path / "run", *settings("adaptive clip"))
    clips = [row["clip_norm"] for row in result["history"] if "clip_norm" in row]
    assert clips[0] == result["config"]["privacy"]["clip_norm"] and clips[-1] != clips[0]
    first = json.loads((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()[0])
    assert Plan.from_dict(first["plan"]).mechanism("rounds").adaptive_clip.quantile == 0.4


def test_a_device_alone_under_local_noise_is_refused():
    with pytest.raises(ConfigError, match="would drown one device's whole history"):
        small_config("privacy.trust=local")


def test_performance_settings_change_nothing_in_the_plan():
    base = plan_for(small_config(), 600)
    for faster in ("threads=2", "engine=device", "server.checkpoint_every=4", "rounds.evaluate_every=1"):
        assert plan_for(small_config(faster), 600) == base
    assert plan_for(small_config("rounds.count=5"), 600) != base


@pytest.mark.parametrize(
    ("settings", "devices", "rounds"),
    [
        (("rounds.cohort=64",), 6_040, 1_600),
        (("rounds.cohort=64",), 943, 250),
        (("rounds.cohort=64",), 100_000, 1_600),
        (("rounds.cohort=64",), 40, 17),
        (("rounds.cohort=null",), 6_040, 17),
        (("rounds.cohort=64", "rounds.passes=0.001"), 943, 1),
        (("rounds.cohort=64", "rounds.passes=null"), 943, 1_600),
    ],
)
def test_passes_bound_the_rounds_by_how_often_each_device_is_asked(settings, devices, rounds):
    config = load_config(None, "open", ["rounds.count=1600", "rounds.passes=17", *settings])
    assert plan_for(config, devices).mechanism("rounds").steps == rounds


def test_a_run_ends_with_its_last_pass(tmp_path):
    """600 devices, 200 a round: 2 passes are 6 rounds, and the report and the ledger agree."""
    result = small_run(tmp_path, "rounds.count=50", "rounds.passes=2", "rounds.cohort=200", "central.passes=1")
    assert result["history"][-1]["round"] == 6
    assert Ledger.read(tmp_path / "ledger.jsonl").spent()["rounds"] == 6
