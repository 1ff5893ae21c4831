"""What the pages and examples for programs say is run as it is written."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrecall.client.device.folder import DeviceFolder
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.plan import Mechanism
from fedrecall.server.recall.release import write_release
from fedrecall.simulations.audit import run_audit

from . import notebook
from .client.device.small_devices import invitation_of, world_of
from .house import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def phone(elsewhere: Path) -> None:
    """Put an enrolled device, its events and a release where the page names them."""
    noisy = (Mechanism(name="rounds", clip_norm=0.3, noise_multiplier=5.0, steps=9),)
    world, task, arrays = world_of(simulated=False, mechanisms=noisy)
    (elsewhere / "phone").mkdir(mode=0o700)
    DeviceFolder.enrol(elsewhere / "phone", invitation_of(world, task, 3), Budget(epsilon=2.0, delta=1e-5))
    events = [f'{{"item": "i{n}", "time": {n}, "type": "view"}}\n' for n in range(6)]
    (elsewhere / "today.jsonl").write_text("".join(events))
    items = ItemTable.from_vectors(arrays["item.id.weight"], tuple(f"i{n}" for n in range(12)))
    write_release(
        elsewhere / "release",
        model=arrays,
        items=items,
        round=2,
        plan_digest=task.plan.digest(),
        ledger_head=None,
        simulated=False,
    )


def test_the_quickstart_is_short_and_does_what_it_says(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "examples" / "quickstart.py"
    assert len(file.read_text().splitlines()) < 25
    runpy.run_path(str(file))
    out = capsys.readouterr().out
    assert "recall@10 0." in out and "released-model: epsilon 7.99" in out and "for user 7: ['" in out
    folder = elsewhere / "runs" / "latest"
    assert pq.read_table(folder / "lists.parquet").num_rows == 4000
    assert "<svg" in (folder / "recall.svg").read_text()


@pytest.mark.usefixtures("phone")
def test_every_block_of_the_page_runs(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit's attacks and checks have tests of their own: here it opens, replays and reports."""
    monkeypatch.setattr(run_audit, "_ATTACKS_S", 0.0)
    monkeypatch.setattr(run_audit, "CHECKS", {})
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), namespace)
    assert len(blocks) >= 10
    assert namespace["found"]["verdict"] == "held"
    said = capsys.readouterr().out
    assert "200 users" in said and "item " in said and "seed 0" in said
    assert {"recall.svg", "lists.trec", "hidden.trec", "shop-run"} <= {path.name for path in elsewhere.iterdir()}


def written() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(notebook.NOTEBOOK.read_text())
    return found


def test_the_notebook_is_its_source_with_outputs() -> None:
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in written()["cells"]]
    assert found == notebook.cells(notebook.SOURCE.read_text()), "write it again: python -m tests.notebook"
    assert {kind for kind, _ in found} == {"markdown", "code"} and len(found) > 10
    shown = [output for cell in written()["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)


def spoken(cell: list[dict[str, Any]]) -> str:
    """Return what the outputs of a cell say in text."""
    return "".join("".join(o.get("text", o.get("data", {}).get("text/plain", []))) for o in cell)


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_it_shows(elsewhere: Path) -> None:
    """Words must be the same, figures nearly: another processor may swap two neighbours in a list."""
    before = written()["cells"]
    after = notebook.execute(notebook.cells(notebook.SOURCE.read_text()))
    number = re.compile(r"-?\d+(?:\.\d+)?")
    for cell, outputs in zip(before, after, strict=True):
        shown, said = spoken(cell.get("outputs", [])), spoken(outputs)
        if "'item'" not in said:
            assert number.sub("#", shown) == number.sub("#", said)
            found = [float(text) for text in number.findall(said)]
            assert found == pytest.approx([float(text) for text in number.findall(shown)], rel=1e-3, abs=0.02)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(400), 20)
    what = (who % 4) * 40 + (60 * rng.random(len(who)) ** 2).astype(int)
    frame = pa.table({"who": who, "what": what, "when": rng.integers(0, 10**6, len(who))})
    (block,) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(block, {"frame": frame})
    assert capsys.readouterr().out.startswith("0.")
