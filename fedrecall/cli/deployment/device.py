"""``fedrecall device``: one user's device, from its key to its recommendations."""

import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, note, pairs, table
from fedrecall.cli.reading import told
from fedrecall.protocol.errors import FedrecallError, PlanError, UsageError

if TYPE_CHECKING:
    from fedrecall.client.device.supervise import Status

app = typer.Typer(
    help="A device: home, init, ingest, join, recommend, ledger, forget, export-my-data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[Path, typer.Argument(help="The device's own folder.")]


@app.command()
def home(
    folder: Annotated[Path, typer.Argument(help="The folder that holds, or will hold, one device a job.")],
    epsilon: Annotated[float | None, typer.Option(help="The most that its user lets all jobs together spend.")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of that epsilon, such as 1e-6.")] = None,
    renews: Annotated[
        Literal["never", "day", "week", "month"], typer.Option(help="How often the budget starts again (UTC).")
    ] = "never",
    unit: Annotated[Literal["user", "interaction"], typer.Option(help="What the budget protects.")] = "user",
    format: FormatOption = "text",
) -> None:
    """Make a person's home: one budget and one ledger over all jobs, each of whose devices is a folder in it."""
    from fedrecall.client.device.enrolment import LEDGER
    from fedrecall.client.device.home import make_home
    from fedrecall.privacy.accounting.budget import Budget
    from fedrecall.privacy.ledger.device_report import device_report

    output = Output(format)
    _both(epsilon, delta)
    budget = None
    if epsilon is not None and delta is not None:
        budget = Budget(epsilon=epsilon, delta=delta, renews=renews, unit=unit)
    _make_folder(folder)
    make_home(folder, budget)
    data = {"folder": str(folder), **device_report(folder / LEDGER, None, datetime.now(UTC))}
    output.answer(data, *_spending(data), f"fedrecall device init {folder}/JOB makes the device of a job in it.")


def _both(epsilon: float | None, delta: float | None) -> None:
    if (epsilon is None) != (delta is None):
        raise UsageError("a budget is --epsilon and --delta together: an epsilon means nothing without its delta")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error


@app.command()
def init(
    folder: Folder,
    invitation: Annotated[Path | None, typer.Option(help="What the operator gave for this device's key.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="The most that its user lets it spend.")] = None,
    delta: Annotated[float | None, typer.Option(help="The delta of that epsilon, such as 1e-6.")] = None,
    renews: Annotated[
        Literal["never", "day", "week", "month"], typer.Option(help="How often the budget starts again (UTC).")
    ] = "never",
    replace: Annotated[bool, typer.Option("--replace", help="Agree to another number, task or catalogue.")] = False,
    format: FormatOption = "text",
) -> None:
    """Make a device's folder and key; with its invitation and its user's budget, enrol it. Repeating it is safe."""
    from fedrecall.client.device.enrolment import check_private
    from fedrecall.client.device.node_key import make_node_key

    output = Output(format)
    _both(epsilon, delta)
    _make_folder(folder)
    check_private(folder)
    key = make_node_key(folder)
    if invitation is None:
        data: dict[str, Any] = {"folder": str(folder), "public_key": str(key), "enrolled": False}
        said = f"Give the operator {key} (never the file without .pub), then:\n"
        said += f"fedrecall device init {folder} --invitation FILE --epsilon E --delta D"
        output.answer(data, said)
        return
    data = _enrol(folder, invitation, epsilon, delta, renews, replace) | {"public_key": str(key)}
    head = ["name", "epsilon", "delta", "adjacency", "sampling", "accountant", "reason"]
    rows = [[row[name] for name in head] for row in data["adversaries"]]
    about = {name: data[name] for name in ("folder", "public_key", "number", "server", "budget", "costs")}
    output.answer(
        data,
        pairs("device", about),
        table(f"what the plan promises, unit {data['unit']}", head, rows),
        f"fedrecall device ingest {folder} FILE, then fedrecall device join {folder}",
    )


def _enrol(
    folder: Path,
    file: Path,
    epsilon: float | None,
    delta: float | None,
    renews: Literal["never", "day", "week", "month"],
    replace: bool,
) -> dict[str, Any]:
    from fedrecall.client.device.folder import DeviceFolder
    from fedrecall.client.device.home import ledger_path, neighbours
    from fedrecall.client.device.join import LOCK
    from fedrecall.privacy.accounting.accounting import account
    from fedrecall.privacy.accounting.budget import Budget
    from fedrecall.privacy.ledger.device_report import cost_of, device_report
    from fedrecall.protocol.invitation import Invitation
    from fedrecall.protocol.lock import only_one

    invited = Invitation.load(file)
    plan = invited.task.plan
    if plan.simulated:
        raise PlanError("the plan is simulated: its noise is known and would protect nobody; ask for one in earnest")
    budget = None
    if epsilon is not None and delta is not None:
        budget = Budget(epsilon=epsilon, delta=delta, renews=renews, unit=plan.unit)
    with only_one(folder / LOCK, f"the device in {folder} is taking part: end its `device join` first"):
        device = DeviceFolder.enrol(folder, invited, budget, replace=replace)
    report = device_report(ledger_path(device.path), plan, datetime.now(UTC))
    if beside := neighbours(folder):
        note(
            f"{len(beside)} more devices lie beside {folder}, each with a budget of its own: where they are of one "
            "person, their budgets add up: make a home first (`fedrecall device home`), and all devices in it"
        )
    return {
        "folder": str(folder),
        "enrolled": True,
        "number": device.number,
        "server": invited.address,
        "plan": plan.digest(),
        "unit": plan.unit,
        "adversaries": [asdict(row) for row in account(plan)],
        "budget": report["budget"],
        "costs": cost_of(plan, Budget(**report["budget"])),
    }


@app.command()
def ingest(
    folder: Folder,
    files: Annotated[list[str], typer.Argument(help="Of any layout that `data import` reads; - is stdin.")],
    item: Annotated[str, typer.Option(help="Column of the item, by name or number from 1.")] = "item",
    time: Annotated[str | None, typer.Option(help="Column of the time; without, file order is time order.")] = None,
    time_format: Annotated[
        str | None, typer.Option(help="unix, unix-ms, -us, -ns, spreadsheet, iso, or as strptime; else found out.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="Column of the event type.")] = None,
    weight: Annotated[str | None, typer.Option(help="Column of the implicit strength.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Rows to keep, such as 'Quantity > 0'. May be repeated."),
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Rows that agree in all are events of their own.")
    ] = False,
    sep: Annotated[str | None, typer.Option(help="Separator; found out if absent.")] = None,
    encoding: Annotated[str | None, typer.Option(help="How the text is encoded; else its first bytes say.")] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="The first line is an event.")] = False,
    item_sep: Annotated[str | None, typer.Option(metavar="S", help="Between several items in one field.")] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="No value, instead of NaN, null, NA and the like. May be repeated."),
    ] = None,
    format: FormatOption = "text",
) -> None:
    """Add events to the device's store, all of them or none; what is there already is not added again."""
    from fedrecall.client.device.enrolment import enrolled
    from fedrecall.client.device.ingest import ingest as add
    from fedrecall.client.device.spool import spooled
    from fedrecall.client.events.events import EventColumns
    from fedrecall.client.events.spelling import MISSING
    from fedrecall.client.events.tables import Layout
    from fedrecall.client.events.times import check_pattern
    from fedrecall.client.events.where import parse_condition

    output = Output(format)
    if files.count("-") > 1:
        raise UsageError("- is given twice: stdin has one end")
    enrolled(folder)
    if time_format is not None:
        check_pattern(time_format)
    columns = EventColumns(
        item=item, time=time, event=event, weight=weight, where=tuple(map(parse_condition, where or ()))
    )
    with output.working() as progress, ExitStack() as stack:
        paths = [
            stack.enter_context(spooled(sys.stdin.buffer, folder)) if name == "-" else Path(name) for name in files
        ]
        data = add(
            folder,
            paths,
            columns=columns,
            layout=Layout(
                separator=None if sep is None else sep.replace("\\t", "\t"),
                encoding=encoding,
                header=not no_header,
                item_separator=item_sep,
                missing=MISSING if missing is None else tuple(missing),
            ),
            time_format=time_format,
            keep_duplicates=keep_duplicates,
            progress=progress,
        )
    said = f"Added {data['added']:,} of {data['clean']:,} clean events; the device has {data['stored']:,} now."
    output.answer(data, said, *told(data | {"rows_read": data["read"]}))


@app.command()
def join(folder: Folder, format: FormatOption = "text") -> None:
    """Take part until stopped (SIGTERM or Ctrl-C): keeps the device's Flower SuperNode running."""
    import numpy as np

    from fedrecall.client.device.enrolment import enrolled
    from fedrecall.client.device.join import LOCK, STATUS, supernode_command, supernode_environment
    from fedrecall.client.device.supervise import supervise
    from fedrecall.protocol.files import write_json_atomic
    from fedrecall.protocol.lock import only_one
    from fedrecall.simulations.training.quiet import SILENCE

    output = Output(format)
    enrolled(folder)
    environment = os.environ | SILENCE | supernode_environment(folder, sys.executable)
    ended: list[Status] = []

    def told(status: "Status") -> None:
        ended[:] = [status]
        try:
            write_json_atomic(folder / STATUS, vars(status), mode=0o600)
        except FedrecallError as error:
            note(f"the status cannot be written: {error}")
        wait = f", again in {status.wait_s:.1f} s" if status.state == "waiting" else ""
        note(f"the SuperNode is {status.state}{wait} (restarts {status.restarts}, last exit {status.last_exit})")

    busy = f"the device in {folder} takes part already, or what a killed `device join` left does: see {STATUS} there"
    with only_one(folder / LOCK, busy) as held:
        supervise(
            lambda: supernode_command(folder, _free_port()),
            environment=environment,
            on_change=told,
            chance=np.random.default_rng().random,
            inherited=[held],
        )
    output.answer(vars(ended[0]), f"stopped after {ended[0].restarts} restarts")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@app.command()
def recommend(
    folder: Folder,
    release: Annotated[Path, typer.Option(help="A release's folder, or its items.safetensors in there.")],
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    again: Annotated[bool, typer.Option("--again", help="Also items that the user has an event with.")] = False,
    format: FormatOption = "text",
) -> None:
    """Recommend items, those that the user has no event with unless --again. The search here leaves no trace."""
    from fedrecall.client.device.folder import DeviceFolder
    from fedrecall.client.recall.recommend import recommend as search
    from fedrecall.client.recall.recommend import release_folder
    from fedrecall.server.recall.release import load_release

    output, device = Output(format), DeviceFolder(folder)
    with output.working():
        files = load_release(release_folder(release))
        found = search(device, files.manifest, files.model, files.items, k=k, again=again)
    rows = [[place, one.item, one.score] for place, one in enumerate(found, 1)]
    output.answer(
        {"round": files.manifest.round, "items": [vars(one) for one in found]},
        table(f"release of round {files.manifest.round}", ["place", "item", "score"], rows),
    )


@app.command()
def ledger(folder: Folder, format: FormatOption = "text") -> None:
    """Verify the device's ledger and show what was spent, for which plans, and what is left."""
    from fedrecall.client.device.enrolment import ENROLMENT, check_private, enrolled, last_failure
    from fedrecall.client.device.home import ledger_path
    from fedrecall.privacy.ledger.device_report import device_report

    output = Output(format)
    check_private(folder)
    plan = enrolled(folder).task.plan if (folder / ENROLMENT).exists() else None
    if failed := last_failure(folder):
        note(
            f"the last answer was zeros, noised and charged as any: the device's own work failed ({failed}). Nobody "
            "else can tell"
        )
    data = device_report(ledger_path(folder), plan, datetime.now(UTC))
    output.answer(data, *_spending(data))


def _spending(data: dict[str, Any]) -> list[Table | str]:
    head = ["plan", "mechanism", "enrolled", "times", "epsilon", "first", "last"]
    rows = [[row[name][:12] if name == "plan" else row[name] for name in head] for row in data["plans"]]
    columns = ["name", "epsilon", "delta", "unit", "adjacency", "sampling", "accountant", "reason"]
    bounds = [[row[name] for name in columns] for row in data["adversaries"]]
    return [
        pairs("budget and spending (a dash: no limit, or no bound)", {k: data[k] for k in ("budget", "spent")}),
        table("plans served", head, rows),
        table("what all of it adds up to", columns, bounds),
        f"The chain is whole: {data['head']['lines']} lines, the last with hash {data['head']['sha256']}",
        data["rollback"],
    ]


@app.command()
def forget(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: nothing brings the events back.")] = False,
    format: FormatOption = "text",
) -> None:
    """Delete the device's events, tower, key and enrolment. Its ledger stays: what left cannot be taken back."""
    from fedrecall.client.device.my_data import forget as delete

    output = Output(format)
    if not yes:
        raise UsageError(f"this deletes the events, tower, key and enrolment in {folder} for good: say --yes")
    data = delete(folder)
    said = [f"Deleted: {', '.join(data['deleted']) or 'nothing, it was done before'}. Left: {', '.join(data['kept'])}."]
    output.answer(data, *said, *data["cannot_be_taken_back"])


@app.command("export-my-data")
def export_my_data(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A new zip file, for its user's eyes.")],
    format: FormatOption = "text",
) -> None:
    """Write everything that the device holds about its user into one file."""
    from fedrecall.client.device.my_data import export_my_data as export

    output = Output(format)
    with output.working():
        data = export(folder, out)
    output.answer(data, pairs("exported", data))
