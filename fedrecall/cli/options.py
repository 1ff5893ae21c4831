"""Options that several commands share: which settings a run has, and which data."""

from pathlib import Path
from typing import Annotated

import click
import typer

from fedrecall.simulations.presets.names import DEFAULT, preset_names

ConfigFile = Annotated[Path | None, typer.Argument(help="A TOML file; without one the preset alone.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        click_type=click.Choice(preset_names()), help=f"Settings to start from; {DEFAULT} where no CONFIG is given."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("-c", metavar="KEY=VALUE", help="One setting, of those in docs/settings.md; may be repeated."),
]
DatasetOption = Annotated[str | None, typer.Option(metavar="NAME", help="A name of `fedrecall data list`.")]
DataPath = Annotated[Path | None, typer.Option(help="The folder with the data set's files.")]
