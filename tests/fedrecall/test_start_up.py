"""What a command loads: help nothing heavy, and no command a library that it does not use. Real processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import write_release
from fedrecall.simulations.presets.names import preset_names

from ..house import ROOT
from ..simulations.runs.small_runs import small_run
from .commands import write_run

HEAVY = {"torch", "opacus", "flwr", "ray", "matplotlib", "faiss", "scipy", "dp_accounting", "pyarrow", "pydantic"}
LEARNS = {"torch", "opacus", "flwr", "ray", "matplotlib"}
"""What trains, and what draws: neither is needed to read, count or account."""

pytestmark = pytest.mark.usefixtures("cache")


def loaded(*arguments: object) -> set[str]:
    """Return the names of all modules that a command loads, which must succeed."""
    words = [str(word) for word in arguments]
    code = f"import json, sys\nfrom fedrecall.cli.app import call\nassert call({words!r}) == 0"
    code += "\nprint('\\n' + json.dumps(list(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", ["--help", "run --help", "data list"])
def test_help_and_the_list_of_data_load_nothing_heavy(command):
    assert loaded(*command.split()) & (HEAVY | {"numpy"}) == set()


def test_accounting_and_describing_data_load_nothing_that_learns_or_draws():
    calibrate = ["privacy", "calibrate", "--epsilon", 8, "--delta", 1e-5, "--steps", 4]
    assert loaded(*calibrate) & (LEARNS | {"pydantic", "pyarrow"}) == set()
    assert loaded("privacy", "plan", "--devices", 943, "-c", "privacy.epsilon=null") & LEARNS == set()
    assert loaded("data", "describe", "synthetic") & (LEARNS | {"scipy"}) == set()


def test_comparing_and_indexing_load_nothing_that_learns_or_draws(tmp_path):
    first, second = (write_run(tmp_path / name, hits=[1, 0]) for name in "ab")
    assert loaded("compare", first, second) & LEARNS == set()
    items = ItemTable.from_vectors(np.eye(4, dtype=np.float32), list("abcd"))
    release = tmp_path / "release"
    write_release(release, model={}, items=items, round=1, plan_digest="0" * 64, ledger_head=None, simulated=True)
    assert loaded("index", "build", release) & LEARNS == set()


def test_a_recommendation_loads_torch_and_neither_what_trains_nor_its_compiler(tmp_path):
    small_run(tmp_path / "run")
    found = loaded("recommend", tmp_path / "run", "--user", "user-1")
    assert found & (LEARNS | {"dp_accounting", "scipy.stats", "torch._dynamo"}) == {"torch"}


def test_help_lists_every_preset(capsys):
    from fedrecall.cli.app import call

    for command in (["run"], ["tune"], ["privacy", "plan"], ["server", "init"]):
        assert call([*command, "--help"]) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in preset_names()), command
