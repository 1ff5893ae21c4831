"""What was found out, dropped and changed while files were read, in a few lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

_FORMATS = {
    "lists": "one user's list a line",
    "jsonl": "JSON lines",
    "json": "JSON objects",
    "parquet": "Parquet",
    "arrow": "Arrow",
}
_SEPARATORS = {"\t": "tab", " ": "blank", ",": "comma", ";": "semicolon", "|": "bar"}


def told(report: Mapping[str, Any]) -> list[str]:
    """Say how the files of a cleaning ``report`` were read, what was dropped, and what else must be said."""
    from fedrecall.client.events.drops import in_words

    dropped = sum(report["dropped"].values())
    said = "; ".join(in_words(dict(report))) if dropped else ""
    rows = report["rows_read"]
    return [
        f"Read: {_files(report['files'])}; {_order(report)}.",
        f"Dropped {dropped:,} of {rows:,} rows: {said}." if dropped else f"Dropped none of {rows:,} rows.",
        *_changed(report["files"]),
        *(f"Warning: {warning}." for warning in report["warnings"]),
    ]


def _files(files: Sequence[Mapping[str, Any]]) -> str:
    """Describe files, those that are alike together."""
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(_how(file), []).append(str(file["file"]))
    return "; ".join(
        f"{names[0] if len(names) == 1 else f'{len(names)} files'} ({how})" for how, names in alike.items()
    )


def _how(file: Mapping[str, Any]) -> str:
    """Say how one file is written; a question mark stands behind what was found out."""
    parts = [f"in {' in '.join(reversed(file['packed']))}"] if "packed" in file else []
    if file["format"] in _FORMATS:
        parts.append(_FORMATS[file["format"]])
    if "separator" in file:
        separator = file["separator"]
        found = ", found out" if "separator_found" in file else ""
        parts.append(f"separator {_SEPARATORS.get(separator, repr(separator))}{found}")
    if "encoding" in file:
        parts.append(file["encoding"] + (", found out" if "encoding_found" in file else ""))
    if file.get("time_format"):
        parts.append(f"times {file['time_format']}")
    return "; ".join(parts)


def _order(report: Mapping[str, Any]) -> str:
    times = report["times"]
    if times is None:
        return "no times, so the order of the files counts"
    return f"{times['first']} to {times['last']} UTC, in the order of time and then of the files"


def _changed(files: Sequence[Mapping[str, Any]]) -> list[str]:
    missing = sum(file.get("missing_texts", 0) for file in files)
    respelled = {
        role: count
        for role in ("user", "item")
        if (count := sum(file.get("respelled_ids", {}).get(role, 0) for file in files))
    }
    lists = [sum(file.get("lists", {}).get(key, 0) for file in files) for key in ("lines", "events")]
    said = []
    if missing:
        hold = "1 field holds" if missing == 1 else f"{missing:,} fields hold"
        were = "was" if missing == 1 else "were"
        said.append(f"{hold} NaN, null or the like and {were} taken as empty (--missing)")
    for role, count in respelled.items():
        ids = (
            f"1 {role} id is a whole number and was"
            if count == 1
            else f"{count:,} {role} ids are whole numbers and were"
        )
        said.append(f"{ids} written as such")
    said += [f"{counted(lists[0], 'line')} of lists, of {counted(lists[1], 'event')}"] if lists[0] else []
    return [f"Changed: {'; '.join(said)}."] if said else []


def counted(number: int, what: str) -> str:
    """Spell a number of things."""
    return f"{number:,} {what}{'s' * (number != 1)}"
