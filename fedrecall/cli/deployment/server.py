"""``fedrecall server``: a real deployment's server: init, invite, up, status."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, note, pairs, table
from fedrecall.cli.options import PresetOption, Settings
from fedrecall.protocol.errors import UsageError

app = typer.Typer(
    help="The server of a deployment: init, invite, up, status.", no_args_is_help=True, rich_markup_mode=None
)

JobFolder = Annotated[Path, typer.Argument(metavar="JOB", help="The job's folder.")]
TlsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="With ca.pem, server.pem, server.key; JOB/tls if absent, and made.")
]
_REFRESH_S = 2.0


@app.command()
def init(
    job: JobFolder,
    catalogue: Annotated[Path, typer.Option(metavar="FILE", help="The public items, one a line.")],
    devices: Annotated[int, typer.Option(min=1, help="Devices that the plan is for: noise and epsilon rest on it.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where devices reach this server.")],
    config: Annotated[Path | None, typer.Option(help="A TOML file; without one the preset alone.")] = None,
    preset: PresetOption = None,
    override: Settings = None,
    item_id: Annotated[str, typer.Option(metavar="COL", help="Of the catalogue, by name or number.")] = "1",
    title: Annotated[str | None, typer.Option(metavar="COL", help="Of the catalogue; a year may end it.")] = None,
    categories: Annotated[str | None, typer.Option(metavar="COL", help="Of the catalogue, with | between.")] = None,
    sep: Annotated[str | None, typer.Option(metavar="S", help="Of the catalogue; found out if absent.")] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="The catalogue's first line is an item.")] = False,
    event_weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=WEIGHT", help="An event type that counts; may be repeated. One type if absent."),
    ] = None,
    every: Annotated[float, typer.Option(min=0, help="Seconds from one round to the next, at least.")] = 0.0,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds after which a round ends with what came.")] = 120.0,
    quorum: Annotated[
        int | None, typer.Option(min=0, help="No round starts with fewer connected devices; half of all if absent.")
    ] = None,
    keep: Annotated[int, typer.Option(min=2, help="Releases that stay on disk.")] = 10,
    release: Annotated[str | None, typer.Option(metavar="URL", help="Where releases are published.")] = None,
    format: FormatOption = "text",
) -> None:
    """Make a job: its plan, its public catalogue, and the model that it starts from."""
    from fedrecall.cli.deployment.job import JobRequest, make_job

    output = Output(format)
    request = JobRequest(
        folder=job,
        catalogue=catalogue,
        item_id=item_id,
        title=title,
        categories=categories,
        separator=None if sep is None else sep.replace("\\t", "\t"),
        header=not no_header,
        devices=devices,
        address=address,
        config=config,
        preset=preset,
        overrides=tuple(override or ()),
        event_weights=tuple(event_weight or ()),
        every_s=every,
        deadline_s=deadline,
        quorum=quorum,
        keep_releases=keep,
        release=release,
    )
    with output.working() as progress:
        made = make_job(request, progress)
    output.answer(
        made,
        pairs(f"job {job}", {key: made[key] for key in ("devices", "items", "trained", "rounds", "quorum")}),
        table("epsilon of all rounds", ["adversary", "epsilon", "delta"], _epsilons(made["adversaries"])),
        f"Invite devices: fedrecall server invite {job} --public-key FILE --out INVITATION",
        f"Start it: fedrecall server up {job}",
    )


@app.command()
def invite(
    job: JobFolder,
    public_key: Annotated[Path, typer.Option(metavar="FILE", help="What `fedrecall device init` wrote.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The invitation, for that device alone.")],
    tls: TlsOption = None,
    format: FormatOption = "text",
) -> None:
    """Give a device's key a number in the plan, and write the invitation; the same key gets the same one again."""
    from fedrecall.protocol.files import read_bounded
    from fedrecall.server.deployment.description import Deployment
    from fedrecall.server.deployment.job import Job
    from fedrecall.server.deployment.roster import Roster
    from fedrecall.server.operation.certificates import certificates
    from fedrecall.server.operation.up import TLS, names

    training, deployment = Job.load(job), Deployment.load(job)
    authority = certificates(tls or job / TLS, names(deployment)).authority.read_text(encoding="ascii")
    key = read_bounded(public_key, max_bytes=1 << 16)
    row = Roster(job, devices=training.task.plan.devices).enrol(key)
    deployment.invitation(row.number, training.task, authority).save(out)
    data = {"number": row.number, "registered": row.node is not None, "invitation": str(out)}
    where = "registered" if row.node is not None else "registered as soon as the server is up"
    Output(format).answer(data, f"device {row.number}: {out} ({where})")


@app.command()
def up(
    job: JobFolder,
    tls: TlsOption = None,
    database: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep Flower's state on disk: un-noised updates too. Memory alone if absent."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen; all addresses of this machine if absent.")
    ] = None,
    metrics: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of this machine for Prometheus metrics.")
    ] = None,
    format: FormatOption = "text",
) -> None:
    """Run the job's server until its last round is released: SuperLink, the door in front of it, and the rounds."""
    from fedrecall.server.operation.status import Spending, status
    from fedrecall.server.operation.up import TLS, started

    os.umask(0o077)
    output = Output(format)
    listen = _listen(job, address, metrics)
    try:
        with started(job, listen, tls=tls or job / TLS, database=database, say=note) as server:
            note(f"up: devices connect to port {listen.port}")
            server.run()
    except KeyboardInterrupt:
        note("stopped; the next `server up` goes on from the last released round")
    found = status(job, Spending(job))
    output.answer(found, *_shown(job, found))


@app.command("status")
def status_(
    job: JobFolder,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and show changes; ended with Ctrl-C.")] = False,
    format: FormatOption = "text",
) -> None:
    """Show rounds, devices, what was refused, what was spent, and the newest release."""
    from fedrecall.server.operation.status import Spending, status

    spending = Spending(job)
    if watch and format == "text":
        with Live(console=Console(), auto_refresh=False) as live:
            try:
                while True:
                    live.update(Group(*_shown(job, status(job, spending))), refresh=True)
                    time.sleep(_REFRESH_S)
            except KeyboardInterrupt:
                return
    if watch:
        raise UsageError("--watch is for people: leave it out with --format json, and ask again")
    found = status(job, spending)
    Output(format).answer(found, *_shown(job, found))


def _listen(job: Path, address: str | None, metrics: int | None) -> Any:
    from fedrecall.server.deployment.description import Deployment
    from fedrecall.server.operation.up import Listen

    host, colon, port = (address or f"0.0.0.0:{Deployment.load(job).port}").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--address is {address!r}: write HOST:PORT, such as 0.0.0.0:9092")
    return Listen(host=host.strip("[]"), port=int(port), metrics=metrics)


def _shown(job: Path, found: dict[str, Any]) -> list[Table]:
    release, refused = found["release"], found["refused"] or {}
    facts = {
        "state": found["state"] + (f" ({found['problem']})" if found["problem"] else ""),
        "up": None if found["uptime_s"] is None else f"{found['uptime_s']:.0f} s",
        "rounds": f"{found['rounds']['done']} of {found['rounds']['planned']}",
        "devices": ", ".join(f"{cell} {name}" for name, cell in found["devices"].items() if cell is not None),
        "refused": ", ".join(f"{n} {w}" for w, n in refused.items()),
        "release": None if release is None else f"round {release['round']}, {_ago(release['written'])} ago",
        "restarts": ", ".join(f"{times} {name}" for name, times in found["restarts"].items() if times) or None,
    }
    if found["cohorts_secret"]:
        facts["refused"] = "secret, as cohorts are"
    rows = [[name, value or "-"] for name, value in facts.items()]
    return [
        table(f"job {job}", ["", ""], rows),
        table("spent so far", ["adversary", "epsilon", "delta"], _epsilons(found["privacy"])),
    ]


def _epsilons(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[r["name"], "unbounded" if r["epsilon"] is None else r["epsilon"], f"{r['delta']:g}"] for r in rows]


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
