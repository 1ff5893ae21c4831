"""Opening a file whatever it is packed in: gzip, bzip2, Zstandard, LZ4 or a zip of one file; and knowing text."""

import codecs
import io
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa

from fedrecall.protocol.errors import DataError

HEAD_BYTES = 1 << 16
_STREAMS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_BZIP2 = b"BZh", b"1AY&SY"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_DEEPEST = 3
_UNREADABLE = {
    b"\xfd7zXZ\x00": "compressed by xz: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!\x1a": "a rar archive: unpack it first",
    b"\x1f\x9d": "compressed by compress: unpack it first",
    b"\xd0\xcf\x11\xe0": "an Excel workbook or another Office file: save it as CSV",
    b"SQLite format 3\x00": "an SQLite database: write the table as CSV",
    b"\x89HDF": "an HDF5 file: write the table as Parquet or CSV",
    b"Obj\x01": "an Avro file: write it as Parquet, CSV or JSON lines",
    b"\x93NUMPY": "a numpy array: write it as Parquet or CSV",
    b"FEA1": "Feather of version 1: write it as version 2, or as Parquet",
    b"%PDF": "a PDF: give the table itself, as CSV",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = "give delimited text, JSON, Parquet or Arrow, or the right --encoding"
_MOST_CONTROLS = 0.02
_LAID_OUT = frozenset("\t\n\x0b\x0c\r\x1a\x01\x1c\x1d\x1e\x1f")
"""Control characters that text does hold: white space, and what separates the fields of some databases."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened file.

    Attributes:
        stream: its unpacked bytes from the first on.
        head: the first of them, for looking at.
        packed: what it was packed in, outermost first; empty for a plain file.
        raw: the file on disk; ``raw.tell()`` is how far reading is.
    """

    stream: io.BufferedReader
    head: bytes
    packed: tuple[str, ...]
    raw: io.BufferedReader


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open ``path`` and yield what it holds.

    Raises:
        DataError: it cannot be read, is packed in a way that is not read here, or is known to be no table.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
        stream: io.BufferedReader = raw
        packed: list[str] = []
        try:
            while kind := _packed_in(head := stream.peek(HEAD_BYTES), path):
                if len(packed) == _DEEPEST:
                    raise DataError(f"{path.name} is packed more than {_DEEPEST} times over: unpack it first")
                packed.append(kind)
                stream = stack.enter_context(_unpacked(stream, kind, path))
            yield Opened(stream=stream, head=head, packed=tuple(packed), raw=raw)
        except (OSError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
            if not packed:
                raise
            raise DataError(f"{path.name} is no whole {packed[-1]} file ({error}): fetch or pack it again") from error


def encoding_of(head: bytes, asked: str | None) -> tuple[str, str]:
    """Return how text that begins with ``head`` is encoded, and who says so: ``asked``, ``found`` or ``default``."""
    if asked is not None:
        return asked, "asked"
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, "found"
    sample = head[: len(head) // 2 * 2]
    for half, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(sample) >= 8 and _zeros(sample[half::2]) > 0.7 and _zeros(sample[1 - half :: 2]) < 0.1:
            return name, "found"
    return "utf-8", "default"


def check_text(head: bytes, encoding: str, separator: str | None, path: Path) -> str:
    """Return ``head`` as text, without its mark.

    Raises:
        DataError: it is not text; nothing of it is shown.
        LookupError: there is no such encoding.
    """
    text = head.decode(encoding, errors="replace").removeprefix("\ufeff")
    controls = sum(1 for c in text if c < " " and c not in _LAID_OUT and c not in (separator or ""))
    if controls > _MOST_CONTROLS * len(text):
        found, _ = encoding_of(head, None)
        likely = found if found not in ("utf-8", encoding) else None
        remedy = f"it looks like {likely}: give --encoding {likely}" if likely else _NO_TEXT
        raise DataError(f"{path.name} is not text in {encoding}; {remedy}")
    return text


def text_of(opened: Opened, encoding: str) -> io.TextIOWrapper:
    """Return the bytes as text; undecodable ones become lone surrogates, which careful reading refuses by line."""
    name = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    return io.TextIOWrapper(opened.stream, encoding=name, errors="surrogateescape")


def _packed_in(head: bytes, path: Path) -> str | None:
    for magic, words in _UNREADABLE.items():
        if head.startswith(magic):
            raise DataError(f"{path.name} is {words}")
    if head[257:262] == b"ustar":
        raise DataError(f"{path.name} is a tar archive: unpack it first, and name the files that hold events")
    if head.startswith(_ZIP):
        return "zip"
    if (head[:3], head[4:10]) == _BZIP2:
        return "bz2"
    return next((kind for magic, kind in _STREAMS.items() if head.startswith(magic)), None)


@contextmanager
def _unpacked(stream: io.BufferedReader, kind: str, path: Path) -> Iterator[io.BufferedReader]:
    """Yield what is in ``stream``."""
    if kind != "zip":
        with pa.CompressedInputStream(stream, kind) as inner:
            yield io.BufferedReader(inner, HEAD_BYTES)
        return
    if not stream.seekable():
        raise DataError(f"{path.name} is a zip inside another package: unpack it first")
    with zipfile.ZipFile(stream) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and not _of_the_system(m.filename)]
        if any(m.filename.startswith("xl/") for m in members):
            raise DataError(f"{path.name} is an Excel workbook: save the sheet as CSV")
        if len(members) != 1:
            names = ", ".join(m.filename[:60] for m in members[:8])
            raise DataError(f"{path.name} holds {len(members)} files ({names}): unpack it, and name those with events")
        if members[0].flag_bits & 1:
            raise DataError(f"{path.name} needs a password: unpack it first")
        with archive.open(members[0], mode="r") as member:
            yield io.BufferedReader(cast(io.RawIOBase, member), HEAD_BYTES)


def _of_the_system(name: str) -> bool:
    """Whether a file of an archive was put there by an operating system for itself."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] in (".DS_Store", "Thumbs.db", "desktop.ini")


def _zeros(data: bytes) -> float:
    return data.count(0) / len(data)
