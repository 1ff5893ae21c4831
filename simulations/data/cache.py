"""The cache of fetched and imported data: whole folders or none, each with the hashes of its files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from fedrecall.protocol.errors import CorruptArtefact, DataError, FedrecallError
from fedrecall.protocol.files import write_json_atomic

MANIFEST = "manifest.json"


def sha256_of_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256, in hex, of the bytes of ``paths`` one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    return digest.hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends well, and vanishes otherwise.

    A manifest with the SHA-256 of every file is added; an older ``target`` is replaced. The folder is
    readable by its owner alone, since imported events are private. Raises FedrecallError when the disk is
    full or the place cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir(mode=0o700)
            yield fresh
            hashes = {path.name: sha256_of_files([path]) for path in sorted(fresh.iterdir())}
            write_json_atomic(fresh / MANIFEST, {"sha256": hashes})
            if target.exists():
                os.replace(target, Path(temporary) / "old")
            os.replace(fresh, target)
    except (OSError, pa.ArrowException) as error:
        raise FedrecallError(
            f"cannot write {target}: {error}; free some space, or set FEDRECALL_CACHE to another folder"
        ) from error


def check_folder(folder: Path, remedy: str) -> None:
    """Compare every file of a cached folder with the manifest.

    Raises CorruptArtefact, naming the file and the ``remedy``, when a file is missing, added or changed.
    """
    try:
        hashes = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        names = {path.name for path in folder.iterdir()} - {MANIFEST}
        changed = sorted(names ^ set(hashes)) or [
            name for name, value in hashes.items() if sha256_of_files([folder / name]) != value
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtefact(f"{folder / MANIFEST} cannot be read ({error}): {remedy}") from error
    if changed:
        raise CorruptArtefact(f"{folder / changed[0]} is not the file that was stored there: {remedy}")
