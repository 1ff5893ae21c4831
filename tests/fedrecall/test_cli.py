"""The command line as a contract: real processes where the process matters, real commands everywhere."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from rich.console import Console
from rich.progress import Progress

import fedrecall
from fedrecall.cli.app import app, call
from fedrecall.cli.console import Output, ProgressBars, ProgressLines, table
from fedrecall.cli.run import resume_command

from ..house import ROOT
from .commands import answer, write_run

PROGRAM = [sys.executable, "-c", "from fedrecall.cli import main; main()"]

pytestmark = pytest.mark.usefixtures("cache")


def leaves(command=None, path=()):
    command = command or typer.main.get_command(app)
    for name, child in command.commands.items():
        if isinstance(child, click.Group):
            yield from leaves(child, (*path, name))
        else:
            yield (*path, name), child


def start(*arguments, **options):
    return subprocess.Popen(
        [*PROGRAM, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def test_the_commands_are_those_of_the_contract_and_each_answers_in_json():
    names = {" ".join(path) for path, _ in leaves()}
    assert names == {
        "run",
        "data list",
        "data fetch",
        "data import",
        "data describe",
        "evaluate",
        "recommend",
        "compare",
        "index build",
        "index search",
        "privacy plan",
        "privacy calibrate",
        "privacy fit",
        "privacy ledger",
        "audit",
        "tune",
        "server init",
        "server invite",
        "server up",
        "server status",
        "device home",
        "device init",
        "device ingest",
        "device join",
        "device recommend",
        "device ledger",
        "device forget",
        "device export-my-data",
        "doctor",
    }
    for path, command in leaves():
        formats = [p for p in command.params if "--format" in p.opts]
        assert formats and list(formats[0].type.choices) == ["text", "json"], path


def test_every_command_and_option_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    for path, command in leaves():
        assert f"fedrecall {' '.join(path)}" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in text, (path, parameter.opts)


def test_help_and_version(capsys):
    assert call(["--help"]) == 0
    assert call(["data", "import", "--help"]) == 0
    assert call(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"fedrecall {fedrecall.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rnu"], 2, "No such command"),
        (["run", "--protocol", "none"], 2, "loo"),
        (["recommend", "x"], 2, "--user"),
        (["compare", "nowhere"], 2, "at least two"),
        (["compare", "nowhere", "either"], 2, "no run.json"),
        (["data", "describe", "synthetc"], 2, "did you mean 'synthetic'"),
        (["data", "fetch", "ml-1m"], 2, "--data-path"),
        (
            ["data", "import", "x.csv", "--name", "n", "--user", "1", "--item", "2", "--event-weight", "x"],
            2,
            "view=1",
        ),
        (["privacy", "calibrate", "--epsilon", "-1", "--delta", "1e-5", "--steps", "1"], 2, "above 0"),
        (["index", "search", "nowhere", "--item", "1"], 6, "manifest.json"),
    ],
)
def test_each_failure_has_its_exit_code_and_says_why_on_stderr(arguments, code, said, capsys):
    assert call(arguments) == code
    out, err = capsys.readouterr()
    assert said in err and out == ""
    assert "Traceback" not in err


def test_what_nobody_foresaw_ends_in_3_and_keeps_its_traceback(tmp_path, capsys):
    for name in "ab":
        write_run(tmp_path / name, hits=[1, 0])
        np.savez(
            tmp_path / name / "private" / "per_user.npz",
            users=np.arange(2),
            **{"recall@10": np.array(["x", "y"])},
        )
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert call(command) == 3
    err = capsys.readouterr().err
    kept = Path(err.rsplit("traceback is in ", 1)[1].strip())
    assert "Traceback" not in err and "Traceback" in kept.read_text()
    kept.unlink()
    assert call(["-v", *command]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error():
    process = start("data", "list")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and err == ""


def test_ctrl_c_ends_with_3_and_a_message(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    columns = ["--name", "n", "--user", "1", "--item", "2"]
    process = start("data", "import", str(tmp_path / "log.csv"), *columns, start_new_session=True)
    with open(tmp_path / "log.csv", "w"):  # returns as soon as the command waits for us to write
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 3, err
    assert "interrupted" in err and "Traceback" not in err and out == ""


def test_an_interrupted_run_is_resumed_by_its_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume_command(tmp_path / "runs" / "a b") == "fedrecall run --resume --out 'runs/a b'"
    said = resume_command(Path("/elsewhere"), "10.0.0.1:6379")
    assert said == "fedrecall run --resume --out /elsewhere -c flower.address=10.0.0.1:6379"


def test_names_stay_whole_on_a_narrow_terminal_and_where_there_is_none(monkeypatch, capsys):
    rows = [
        ["movietweetings", "a long description of what there is " * 3, 1],
        ["epsilon (unit user) released-model", "x", 2],
    ]
    shown = table("t", ["name", "description", "users"], rows)
    narrow = Console(file=io.StringIO(), width=80)
    narrow.print(shown)
    for name, *_ in rows:
        assert name in narrow.file.getvalue()
    monkeypatch.setenv("COLUMNS", "20")
    Output("text").answer(None, table("t", ["name", "what"], [["n" * 30, "w" * 100]]))
    assert "w" * 100 in capsys.readouterr().out


def test_doctor_finds_this_machine_ready_and_a_read_only_cache_not(tmp_path, monkeypatch, capsys):
    found = answer(capsys, "doctor")
    assert found["ready"] and {row["status"] for row in found["checks"]} <= {"ok", "warn"}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDRECALL_CACHE", str(tmp_path / "file"))
    assert call(["doctor", "--format", "json"]) == 3
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["cache"]["status"] == "fail" and "FEDRECALL_CACHE" in rows["cache"]["remedy"]


def test_progress_lines_come_every_few_seconds_and_not_for_what_is_over_at_once(capsys):
    now = [0.0]
    say = ProgressLines(clock=lambda: now[0])
    for done in range(11):
        now[0] = done * 0.1
        say("quick", done, 10)
    assert capsys.readouterr().err == ""
    for done in range(31):
        now[0] = 100.0 + done
        say("slow", done, 30)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "slow: 5/30 (1.0/s, 25 s left)"
    assert lines[-1] == "slow: 30/30 (1.0/s)"
    assert len(lines) == 6


def test_bars_on_a_terminal_show_stage_rate_and_vanish_when_over_at_once():
    screen = io.StringIO()
    now = [0.0]
    console = Console(file=screen, force_terminal=True, width=100)
    with Progress(console=console, get_time=lambda: now[0], auto_refresh=False) as bars:
        say = ProgressBars(bars)
        for done in range(6):
            say("train", done, 5)
            now[0] += 1.0
        say("blink", 1, 1)
        say("count", 3, 0)
        assert [task.description for task in bars.tasks] == ["train", "count"]
        assert bars.tasks[0].finished and bars.tasks[1].total is None


def test_work_that_prints_does_not_spoil_the_answer(capsys):
    output = Output("json")
    with output.working():
        print("chatter")
    output.answer({"a": 1})
    out, err = capsys.readouterr()
    assert out == '{"a": 1}\n' and "chatter" in err


def test_texts_from_data_are_shown_as_they_are(capsys):
    Output("text").answer(None, table("[b]t[/b]", ["[i]h"], [["[red]:smile:[/red]"]]))
    out = capsys.readouterr().out
    assert "[b]t[/b]" in out and "[i]h" in out and "[red]:smile:[/red]" in out


def test_the_module_runs_as_the_program_does():
    done = subprocess.run(
        [sys.executable, "-m", "fedrecall.cli", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == f"fedrecall {fedrecall.__version__}\n"


def test_a_plan_is_shown_before_anything_runs(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("[privacy]\nepsilon = 4.0\n")
    command = ["privacy", "plan", str(tmp_path / "c.toml")]
    named = answer(capsys, *command, "--devices", "943")
    bound = named["adversaries"][0]
    assert bound["name"] == "released-model" and 3.99 <= bound["epsilon"] <= 4.0
    assert named["devices"] == 943 and all(m["noise_multiplier"] > 0 for m in named["mechanisms"])
    counted = answer(capsys, *command, "--dataset", "synthetic")
    assert counted["devices"] == answer(capsys, "data", "describe", "synthetic")["users"]
    assert call([*command, "--devices", "943", "-c", "privacy.epsilno=1"]) == 2
    assert "did you mean" in capsys.readouterr().err
