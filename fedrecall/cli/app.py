"""The program ``fedrecall``: its commands, and how each ending becomes an exit code."""

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import click
import typer

import fedrecall
from fedrecall.cli import data, doctor, index, results
from fedrecall.cli.audit import audit
from fedrecall.cli.console import note
from fedrecall.cli.deployment import device, server
from fedrecall.cli.privacy import commands as privacy
from fedrecall.cli.run import run
from fedrecall.cli.tune import tune
from fedrecall.protocol.errors import FedrecallError

_LOGGER = logging.getLogger("fedrecall")
_FAILED = 3
_USAGE = 2

app = typer.Typer(
    name="fedrecall",
    help="Federated recall with a stated privacy bound. Exit codes: 0 fine, 2 usage, 3 failed, "
    "4 privacy budget exhausted, 5 audit found a leak, 6 corrupt artefact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.add_typer(data.app, name="data")
app.command()(results.evaluate)
app.command()(results.recommend)
app.command()(results.compare)
app.command()(tune)
app.command()(audit)
app.add_typer(index.app, name="index")
app.add_typer(privacy.app, name="privacy")
app.add_typer(device.app, name="device")
app.add_typer(server.app, name="server")
app.command()(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedrecall {fedrecall.__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more, and show the traceback of an unexpected error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Set up logging for every command."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    _LOGGER.setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line of this process and end it with the exit code."""
    # Before torch is loaded: its idle threads otherwise spin, which on a busy machine slows every step many times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing that goes wrong leaves as an exception."""
    try:
        # Not through the program's own main, which gives Ctrl-C and a closed pipe other exit codes.
        program = typer.main.get_command(app)
        with program.make_context("fedrecall", list(arguments)) as context:
            program.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except (click.Abort, KeyboardInterrupt):
        note("interrupted; nothing is half-written: give the same command again")
        return _FAILED
    except click.ClickException as error:
        error.show()
        return _USAGE
    except FedrecallError as error:
        note(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our stdout had enough; what it did not read is nobody's loss.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        note(f"error: {type(error).__name__}: {error}")
        note(_where_traceback(_LOGGER.isEnabledFor(logging.INFO)))
        return _FAILED
    return 0


def _where_traceback(shown: bool) -> str:
    """Return the traceback itself, or the file that it was written to."""
    text = traceback.format_exc()
    if shown:
        return text
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fedrecall-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return text
    return f"this is a defect of fedrecall; the traceback is in {file.name}"
