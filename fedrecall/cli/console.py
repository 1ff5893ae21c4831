"""What every command says and where: the answer on stdout, everything else on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Table
from rich.text import Text

ProgressCall = Callable[[str, int, int], None]
Format = Literal["text", "json"]
FormatOption = Annotated[
    Format, typer.Option("--format", help="text for people; json for programs: one line on stdout.")
]

QUIET_S = 2.0
LINE_EVERY_S = 5.0
_PIPE_WIDTH = 160


class Output:
    """Answers of one command, as text or as one line of strict JSON."""

    def __init__(self, format: Format) -> None:
        """Write to the stdout of this moment."""
        self._format = format
        self._stdout = sys.stdout
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._console = _Screen(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)

    @contextmanager
    def working(self) -> Iterator[ProgressCall]:
        """Yield the progress callback for long work; what libraries print meanwhile goes to stderr."""
        with redirect_stdout(sys.stderr):
            if sys.stderr.isatty():
                with _bars() as bars:
                    yield ProgressBars(bars)
            else:
                yield ProgressLines()

    def answer(self, data: Any, *parts: Table | str) -> None:
        """Say ``data`` in JSON, or ``parts`` in text."""
        if self._format == "json":
            from fedrecall.protocol.jsontext import dumps

            self._stdout.write(dumps(data) + "\n")
        else:
            for part in parts:
                self._console.print(part, soft_wrap=isinstance(part, str))
        self._stdout.flush()


class _Screen(Console):
    """A console that leaves a closed pipe to the caller."""

    def on_broken_pipe(self) -> None:
        """Go on raising; ``fedrecall.cli.app.call`` decides."""
        raise


def note(message: str) -> None:
    """Say something beside the answer, on stderr."""
    print(message, file=sys.stderr, flush=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of any values; ``Output`` shows texts as they are, whatever markup they may hold."""
    out = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    numeric = [
        any(_is_number(row[i]) for row in rows) and all(row[i] is None or _is_number(row[i]) for row in rows)
        for i in range(len(head))
    ]
    for i, (name, right) in enumerate(zip(head, numeric, strict=True)):
        # The first column names its row: it stays on one line while anything else can be narrowed.
        out.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        out.add_row(*(cell(value) for value in row))
    return out


def pairs(title: str, data: Mapping[str, Any]) -> Table:
    """Return nested data as a table of dotted names and values."""
    return table(title, ["name", "value"], list(_flatten(data)))


def cell(value: Any) -> str:
    """Spell one value for a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or "-"
    return str(value)


class ProgressLines:
    """Progress where there is no terminal: a line every few seconds, none for what is over at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start counting; ``clock`` gives seconds."""
        self._clock = clock
        self._stage = ""
        self._started = self._last = clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far ``stage`` is, if it is time to."""
        now = self._clock()
        if stage != self._stage:
            self._stage, self._started, self._last = stage, now, now
        elapsed = now - self._started
        ended = done >= total and elapsed >= QUIET_S
        if now - self._last < LINE_EVERY_S and not ended:
            return
        self._last = now
        rate = done / elapsed if elapsed > 0 else 0.0
        left = "" if not 0 < done < total else f", {(total - done) / rate:.0f} s left"
        note(f"{stage}: {done:,}/{total:,} ({rate:,.1f}/s{left})")
        if ended:
            self._stage = ""


class ProgressBars:
    """Progress on a terminal: one bar a stage; the bar of a stage that was over at once disappears."""

    def __init__(self, progress: Progress) -> None:
        """Draw on ``progress``, which its owner starts and stops."""
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of ``stage``; a total of 0 is not known yet."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        task = self._tasks[stage]
        self._progress.update(task, completed=done, total=total or None)
        if done >= total > 0:
            elapsed = next(t.elapsed or 0.0 for t in self._progress.tasks if t.id == task)
            if elapsed < QUIET_S:
                self._progress.remove_task(task)
            else:
                self._progress.stop_task(task)
            del self._tasks[stage]


class _Rate(ProgressColumn):
    """How much of a stage is done a second."""

    def render(self, task: Task) -> Text:
        """Return the rate since the stage began."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeLeft(),
        console=Console(stderr=True),
        redirect_stdout=False,
    )


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[list[Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            yield from _flatten({f"{key}[{i}]": v for i, v in enumerate(value)}, prefix)
        else:
            yield [f"{prefix}{key}", value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
