"""``fedrecall index``: the FAISS index of a run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrecall.cli.console import FormatOption, Output, note, pairs, table
from fedrecall.cli.results import RunFolder

app = typer.Typer(help="The FAISS index of a run: build, search.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def build(
    run: RunFolder,
    kind: Annotated[
        Literal["flat", "sq8", "hnsw", "ivf"] | None, typer.Option(help="Chosen by size if absent.")
    ] = None,
    format: FormatOption = "text",
) -> None:
    """Build the index over a run's verified item table, and state its recall against exact search."""
    from fedrecall.simulations.runs.index import replace_run_index

    output = Output(format)
    with output.working() as progress:
        result = replace_run_index(run, kind, progress=progress)
    if result["warning"]:
        note(f"warning: {result['warning']}")
    output.answer(result, pairs(f"index of {run}", result))


@app.command()
def search(
    run: RunFolder,
    item: Annotated[str, typer.Option(help="Identifier of the item whose neighbours are wanted.")],
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    format: FormatOption = "text",
) -> None:
    """Find the items nearest to an item by the index; `recommend` asks for a user."""
    from fedrecall.simulations.runs.index import search_run_index

    output = Output(format)
    with output.working():
        result = search_run_index(Path(run), item, k)
    rows = [[place, row["item"], row["score"]] for place, row in enumerate(result["neighbours"], 1)]
    output.answer(result, table(f"nearest to {item} ({result['kind']})", ["place", "item", "score"], rows))
