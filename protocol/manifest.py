"""The manifest of a release or a run folder: what each file's bytes are, and under which plan."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import read_bounded, sha256_file, sha256_of, write_json_atomic

NAME = "manifest.json"
_FORMAT = "manifest/1"
_MAX_BYTES = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 in hex of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder's files are.

    Attributes:
        files: entry of each file by its path inside the folder, with ``/`` between folders.
        round: the round whose model was released.
        plan_digest: ``Plan.digest`` of the privacy plan.
        ledger_head: hash of the ledger's last line at release, so that a rolled-back ledger shows; ``None``
            without a ledger.
        simulated: noise or coins came from a known seed: such a release protects nobody in earnest.
    """

    files: dict[str, FileEntry]
    round: int
    plan_digest: str
    ledger_head: str | None
    simulated: bool


def write_manifest(
    folder: Path,
    *,
    names: Iterable[str],
    round: int,
    plan_digest: str,
    ledger_head: str | None,
    simulated: bool,
) -> Manifest:
    """Hash the files ``names`` of ``folder`` and write its manifest atomically; write it last.

    Raises:
        CorruptArtefact: a named file is missing.
        FedrecallError: a name leads out of the folder, or the manifest cannot be written.
    """
    folder = Path(folder)
    files = {}
    for name in sorted(set(names)):
        if not _inside(name):
            raise FedrecallError(f"manifest name {name!r} leads out of {folder}: name files inside it")
        digest = sha256_file(folder / name)
        files[name] = FileEntry(size=(folder / name).stat().st_size, sha256=digest)
    manifest = Manifest(files=files, round=round, plan_digest=plan_digest, ledger_head=ledger_head, simulated=simulated)
    write_json_atomic(folder / NAME, {"format": _FORMAT} | asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest without checking its files; CorruptArtefact unless it is complete."""
    path = Path(folder) / NAME
    try:
        data = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise CorruptArtefact(f"{path} is not JSON ({error}): fetch the release again") from error
    if not _well_formed(data):
        raise CorruptArtefact(f"{path} is not a manifest of format {_FORMAT!r}: fetch the release again")
    return Manifest(
        files={name: FileEntry(**entry) for name, entry in data["files"].items()},
        round=data["round"],
        plan_digest=data["plan_digest"],
        ledger_head=data["ledger_head"],
        simulated=data["simulated"],
    )


def verify(folder: Path) -> Manifest:
    """Check every file that the manifest of ``folder`` lists, and return the manifest.

    Guarantees that each has the listed size and SHA-256; files that are not listed are not looked at. Who
    wrote the manifest is not proven.

    Raises:
        CorruptArtefact: the manifest or a file is missing or differs; names the file.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = Path(folder) / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size or sha256_file(path) != entry.sha256:
            raise CorruptArtefact(f"{path} {_differs(size, entry.size)}: fetch the release again")
    return manifest


def read_verified(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Return the bytes of one listed file, the very ones whose hash was checked, or raise CorruptArtefact."""
    path = Path(folder) / name
    entry = manifest.files.get(name)
    if entry is None:
        raise CorruptArtefact(f"{path} is not in the manifest: fetch the release again")
    data = read_bounded(path, max_bytes=entry.size)
    if len(data) != entry.size or sha256_of(data) != entry.sha256:
        raise CorruptArtefact(f"{path} {_differs(len(data), entry.size)}: fetch the release again")
    return data


def _inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path that stays in its folder and is not the manifest itself."""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and name not in (".", NAME)
    return plain and ".." not in path.parts and not re.search(r"[\\:\x00]", name)


def _differs(size: int | None, wanted: int) -> str:
    """Say how a file differs from its entry."""
    if size is None:
        return "is missing"
    return "has other bytes than its manifest says" if size == wanted else f"has {size} bytes, not {wanted}"


def _well_formed(data: Any) -> bool:
    """Whether ``data`` is the JSON of a manifest in every field."""
    keys = {"format", "files", "round", "plan_digest", "ledger_head", "simulated"}
    if not isinstance(data, dict) or set(data) != keys or not isinstance(data["files"], dict):
        return False
    return (
        data["format"] == _FORMAT
        and _is_count(data["round"])
        and _is_hash(data["plan_digest"])
        and (data["ledger_head"] is None or _is_hash(data["ledger_head"]))
        and isinstance(data["simulated"], bool)
        and all(_inside(name) and _is_entry(entry) for name, entry in data["files"].items())
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        return False
    return _is_count(entry["size"]) and _is_hash(entry["sha256"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None
