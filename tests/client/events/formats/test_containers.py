"""Whatever a log is packed in or encoded by, it is the same log; what is no table is named, and never shown."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fedrecall.client.events.tables import Layout
from fedrecall.protocol.errors import DataError

from ..logs import clean, delimited, json_lines, made, rows_of, write


def zipped(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in two parts": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "bzip2": bz2.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True),
    "zip": lambda data: zipped(("log.csv", data)),
    "zip with what systems add": lambda data: zipped(("__MACOSX/._log.csv", b"\0"), (".DS_Store", b"x"), ("a", data)),
    "gzip in zip": lambda data: zipped(("log.csv.gz", gzip.compress(data))),
}


@pytest.mark.parametrize("way", PACKED)
@pytest.mark.parametrize("form", [delimited, json_lines])
def test_a_packed_log_is_the_log(tmp_path: Path, rng: np.random.Generator, way: str, form: Callable[..., str]) -> None:
    rows = made(rng, 3000)
    events = clean(write(tmp_path / "log", PACKED[way](form(rows).encode())))
    assert rows_of(events) == rows
    assert events.report["files"][0]["packed"]


ENCODINGS = {
    "utf-8 with a mark": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16 without a mark": "utf-16-le",
    "the other utf-16 without a mark": "utf-16-be",
    "utf-32": "utf-32",
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_encoding_that_the_first_bytes_show_is_found_and_said(
    tmp_path: Path, rng: np.random.Generator, name: str, pack: Callable[[bytes], bytes]
) -> None:
    rows = [(f"{user}ü", item, time) for user, item, time in made(rng)]
    path = write(tmp_path / "log.csv", pack(delimited(rows).encode(ENCODINGS[name])))
    events = clean(path)
    assert rows_of(events) == rows
    about = events.report["files"][0]
    assert about["encoding_found"] and about["encoding"].startswith(ENCODINGS[name][:5])


def test_the_encoding_that_was_asked_for_is_not_guessed_over(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "log.csv", delimited(made(rng)).encode("utf-16"))
    with pytest.raises(DataError, match="looks like utf-16: give --encoding utf-16"):
        clean(path, layout=Layout(encoding="utf-8"))


def tarred(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("log.csv")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


NO_TABLES: dict[str, tuple[Callable[[bytes, np.random.Generator], bytes], str]] = {
    "a truncated gzip": (lambda data, _: gzip.compress(data)[:-200], "no whole gzip"),
    "an empty gzip": (lambda data, _: gzip.compress(b""), "is empty"),
    "xz": (lambda data, _: lzma.compress(data), "xz: unpack"),
    "a tar": (lambda data, _: tarred(data), "tar archive: unpack"),
    "two files in a zip": (lambda data, _: zipped(("a.csv", data), ("b.csv", data)), r"2 files \(a.csv, b.csv\)"),
    "a workbook": (lambda data, _: zipped(("xl/workbook.xml", data)), "Excel.*CSV"),
    "a broken zip": (lambda data, _: zipped(("a", data))[:-30], "no whole zip"),
    "an SQLite database": (lambda data, _: b"SQLite format 3\0" + data, "SQLite.*CSV"),
    "noise": (lambda data, rng: rng.bytes(5000), "is not text"),
    "noise in gzip": (lambda data, rng: gzip.compress(rng.bytes(5000)), "is not text"),
    "zeros": (lambda data, _: b"user,item,time\n" + b"\0" * 500, "is not text"),
    "Parquet in gzip": (lambda data, _: gzip.compress(b"PAR1" + data), "Parquet inside gzip"),
}


@pytest.mark.parametrize("what", NO_TABLES)
def test_what_is_no_table_is_named_and_not_shown(tmp_path: Path, rng: np.random.Generator, what: str) -> None:
    make, message = NO_TABLES[what]
    data = delimited([(f"secret{u}", i, t) for u, i, t in made(rng, 500)]).encode()
    with pytest.raises(DataError, match=message) as caught:
        clean(write(tmp_path / "log", make(data, rng)))
    said = str(caught.value)
    assert "secret" not in said and said.isprintable() and len(said) < 300
