"""``fedrecall data``: list, fetch, import and describe data sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrecall.cli.console import FormatOption, Output, pairs, table
from fedrecall.cli.options import DataPath
from fedrecall.cli.reading import counted, told
from fedrecall.protocol.errors import UsageError

app = typer.Typer(help="Data sets: list, fetch, import, describe.", no_args_is_help=True, rich_markup_mode=None)

_COLUMN = "Column by name, or by number from 1."


@app.command("list")
def list_(format: FormatOption = "text") -> None:
    """List the data sets that `run --dataset` takes."""
    from fedrecall.simulations.data.places import list_datasets

    rows = list_datasets()
    head = ["name", "description", "users", "items", "interactions", "cached", "terms"]
    Output(format).answer(rows, table("data sets", head, [[row[key] for key in head] for row in rows]))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `fedrecall data list`.")],
    format: FormatOption = "text",
) -> None:
    """Download a data set into the cache; its terms are shown once."""
    from fedrecall.simulations.data.fetch import fetch_dataset

    output = Output(format)
    with output.working() as progress:
        folder = fetch_dataset(name, progress=progress)
    output.answer({"name": name, "folder": str(folder)}, f"{name} is in {folder}")


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Event files, in the order of time.")],
    name: Annotated[str, typer.Option(help="What the data set is called from now on.")],
    user: Annotated[str, typer.Option(metavar="COL", help=_COLUMN)],
    item: Annotated[str, typer.Option(metavar="COL", help=_COLUMN)],
    time: Annotated[
        str | None, typer.Option(metavar="COL", help=f"{_COLUMN} Without one, file order is time order.")
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(metavar="F", help="unix, unix-ms, -us, -ns, spreadsheet, iso, or as strptime; else found out."),
    ] = None,
    event: Annotated[str | None, typer.Option(metavar="COL", help=f"Event type. {_COLUMN}")] = None,
    event_weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=WEIGHT", help="Weight of an event type; others are dropped. May be repeated."),
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COL", help=f"Implicit strength. {_COLUMN}")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Rows to keep, such as 'Quantity > 0'. May be repeated."),
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Rows that agree in all are events of their own.")
    ] = False,
    sep: Annotated[str | None, typer.Option(metavar="S", help="Separator; found out if absent.")] = None,
    encoding: Annotated[str | None, typer.Option(metavar="E", help="Else its first bytes', or utf-8.")] = None,
    no_header: Annotated[bool, typer.Option("--no-header", help="The first line holds data.")] = False,
    layout: Annotated[
        Literal["rows", "lists"] | None, typer.Option(help="A line is one event, or a user and a list of items.")
    ] = None,
    item_sep: Annotated[str | None, typer.Option(metavar="S", help="Between several items in one field.")] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="No value, instead of NaN, null, NA and the like. May be repeated."),
    ] = None,
    validation: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Events held out for it, for protocol given. Repeatable.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Events held out for it, for protocol given. Repeatable.")
    ] = None,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="The public catalogue.")] = None,
    items_encoding: Annotated[
        str | None, typer.Option(metavar="E", help="Of the catalogue, where it is not --encoding.")
    ] = None,
    item_id: Annotated[str | None, typer.Option(metavar="COL", help=f"Of the catalogue. {_COLUMN}")] = None,
    title: Annotated[
        str | None, typer.Option(metavar="COL", help=f"Of the catalogue, or of the event files. {_COLUMN}")
    ] = None,
    categories: Annotated[
        str | None, typer.Option(metavar="COL", help=f"Of the catalogue, or of the event files. {_COLUMN}")
    ] = None,
    category_sep: Annotated[str, typer.Option(metavar="S", help="Between the categories of an item.")] = "|",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a data set of this name.")] = False,
    format: FormatOption = "text",
) -> None:
    """Import event files of any layout: delimited text, JSON, Parquet or Arrow, packed or not."""
    from fedrecall.client.events.spelling import MISSING
    from fedrecall.client.events.where import parse_condition
    from fedrecall.simulations.data.importing.import_spec import ImportSpec
    from fedrecall.simulations.data.importing.importer import import_files

    output = Output(format)
    spec = ImportSpec(
        files=tuple(files),
        name=name,
        user=user,
        item=item,
        time=time,
        time_format=time_format,
        event=event,
        event_weights=_weights(event_weight) if event_weight else None,
        weight=weight,
        where=tuple(map(parse_condition, where or ())),
        keep_duplicates=keep_duplicates,
        separator=None if sep is None else sep.replace("\\t", "\t"),
        encoding=encoding,
        header=not no_header,
        layout=layout,
        item_separator=item_sep,
        missing=MISSING if missing is None else tuple(missing),
        validation_files=tuple(validation or ()),
        test_files=tuple(test or ()),
        items_file=items,
        items_encoding=items_encoding,
        item_id=item_id,
        title=title,
        categories=categories,
        category_separator=category_sep,
        replace=replace,
    )
    with output.working() as progress:
        report = import_files(spec, progress=progress)
    sizes = (("interactions", "event"), ("users", "user"), ("items", "item"))
    events, users, items_ = (counted(report[key], what) for key, what in sizes)
    given = " --protocol given" if test else ""
    said = f"{events} of {users} on {items_}"
    lines = [
        f"Imported {name}: {said}.",
        *told(report["cleaning"]),
        f"Train on it: fedrecall run --dataset {name}{given}",
    ]
    output.answer(report, *lines)


@app.command("describe")
def describe_(
    name: Annotated[str, typer.Argument(help="A name of `fedrecall data list`.")],
    data_path: DataPath = None,
    format: FormatOption = "text",
) -> None:
    """Describe a data set in numbers: sizes, histories, times, popularity, what cleaning dropped."""
    from fedrecall.simulations.data.describe import describe

    output = Output(format)
    with output.working() as progress:
        content = describe(name, data_path, progress=progress)
    output.answer(content, pairs(name, content))


def _weights(texts: list[str]) -> dict[str, float]:
    """Read ``view=1`` and the like; raises UsageError naming the text that is not so."""
    weights = {}
    for text in texts:
        kind, found, number = text.rpartition("=")
        try:
            weights[kind] = float(number)
        except ValueError:
            found = ""
        if not found or not kind:
            raise UsageError(f"--event-weight is {text!r}: write the type, = and a number, such as view=1")
    return weights
