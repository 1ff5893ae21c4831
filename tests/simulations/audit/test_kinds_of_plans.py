"""An audit of every kind of plan that a run can have: sound runs hold, whatever samples, clips, trusts or trains."""

from pathlib import Path

import pytest

from fedrecall.simulations.audit import run_audit
from tests.simulations.runs.small_runs import small_run

KINDS = {
    "poisson": ("user-eps8", ("rounds.cohort=60",)),
    "fixed size": ("user-eps8", ("rounds.cohort=60", "rounds.sampling=fixed_size")),
    "limited, correlated": ("user-eps8", ("rounds.cohort=200", "rounds.sampling=limited", "rounds.bands=null")),
    "adaptive clip": ("user-eps8", ("privacy.adaptive_clip.quantile=0.5",)),
    "towers in rounds": ("user-eps8", ("local.tower_learning_rate=0.05",)),
    "many local steps": ("user-eps8", ("local.steps=3",)),
    "adam": ("user-eps8", ("server.optimiser=fedadam", "server.average=ema")),
    "interaction, local": ("interaction-eps8", ()),
    "interaction, central": ("interaction-eps8", ("privacy.trust=central",)),
    "no rounds": ("user-eps8", ("rounds.count=0",)),
    "no privacy": ("open", ("server.warmup_rounds=1",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_run_of_this_kind_holds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_audit, "_ATTACKS_S", 0.0)
    monkeypatch.setattr(run_audit, "_CANARIES", 40)
    preset, overrides = KINDS[kind]
    small_run(tmp_path / "run", *overrides, preset=preset)
    result = run_audit.audit_run(tmp_path / "run", progress=lambda *_: None)
    assert result["broken"] == []
    refused = [a["what"] for a in result["attempts"] if "refused" in a["what"] and a["verdict"] == "not tested"]
    assert refused == []
    held = {a["name"] for a in result["attempts"] if a["verdict"] == "held"}
    assert {"folder: release", "folder: ledger", "folder: claims", "folder: replay", "claims: epsilon"} <= held
    if kind not in ("no rounds", "no privacy"):
        assert {"noise: rounds", "sampler", "sensitivity", "wire: names"} <= held
