"""Fetching MovieLens 100K: from a published wheel that contains it, else from GroupLens.

Nothing is installed. Terms are logged once, when it is fetched. What arrives is checked against known hashes
before it enters the cache.
"""

import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fedrecall.client.events.tables import Progress
from fedrecall.protocol.errors import CorruptArtefact, DataError
from fedrecall.simulations.data.cache import check_folder, new_folder
from fedrecall.simulations.data.known import KNOWN
from fedrecall.simulations.data.places import cache_folder

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/"
WHEEL_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}
TIMEOUT_S = 60
MAX_ZIP_BYTES = 20_000_000

logger = logging.getLogger(__name__)


def fetch_dataset(name: str, *, progress: Progress | None = None) -> Path:
    """Return the cached folder of ``name``, fetching it when it is absent or damaged.

    Raises DataError for a data set that cannot be fetched (naming the files needed), and when no source
    answers.
    """
    if name not in KNOWN:
        raise DataError(f"{name!r} cannot be fetched: only ml-100k can; see `fedrecall data list`")
    if name != "ml-100k":
        raise DataError(
            f"{name} is not fetched: get {', '.join(KNOWN[name].files)} and give their folder as --data-path"
        )
    folder = cache_folder() / name
    if folder.exists():
        try:
            check_folder(folder, "it is fetched again")
            return folder
        except CorruptArtefact as error:
            logger.warning("%s", error)
    logger.warning("Fetching MovieLens 100K (2 MB). Terms: %s", KNOWN[name].terms)
    files = _download(progress)
    with new_folder(folder) as fresh:
        for file, data in files.items():
            (fresh / file).write_bytes(data)
    if progress is not None:
        progress("fetching ml-100k", 2, 2)
    return folder


def _download(progress: Progress | None) -> dict[str, bytes]:
    """Ask each source in turn; raises DataError with every reason when none answers."""
    reasons = []
    sources: tuple[tuple[str, Callable[[], dict[str, bytes]]], ...] = (
        ("wheel", files_from_wheel),
        ("GroupLens", files_from_zip),
    )
    for done, (label, source) in enumerate(sources):
        if progress is not None:
            progress("fetching ml-100k", done, 2)
        try:
            return source()
        except (OSError, zipfile.BadZipFile, subprocess.SubprocessError, CorruptArtefact) as error:
            reasons.append(f"{label}: {error}")
    raise DataError(
        f"ml-100k could not be fetched ({'; '.join(reasons)}): check the network, give a folder with u.data"
        " and u.item as --data-path, or use --dataset synthetic, which needs nothing"
    )


def files_from_wheel(requirement: str = WHEEL, sha256: str = WHEEL_SHA256) -> dict[str, bytes]:
    """Download the wheel with pip. It is read as a zip, never installed or imported.

    Raises CorruptArtefact when its hash differs from ``sha256``, OSError when pip cannot download it.
    """
    with tempfile.TemporaryDirectory(prefix="fedrecall-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        options = ["--disable-pip-version-check", "--no-input", "--timeout", "20", requirement, "-d", folder]
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=4 * TIMEOUT_S)
        wheels = sorted(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            lines = result.stderr.strip().splitlines() or ["no wheel came"]
            raise OSError(lines[-1])
        data = wheels[0].read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptArtefact(f"{wheels[0].name} has SHA-256 {found}, expected {sha256}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {file: archive.read(WHEEL_FOLDER + file) for file in WHEEL_FILES}


def files_from_zip(url: str = GROUPLENS, sha256: Mapping[str, str] = GROUPLENS_SHA256) -> dict[str, bytes]:
    """Download the zip of GroupLens. Only the files named in ``sha256`` are read.

    Raises CorruptArtefact when one is missing or differs, OSError when the address does not answer.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        data = answer.read(MAX_ZIP_BYTES)
    files = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for file, expected in sha256.items():
            try:
                files[file] = archive.read(f"ml-100k/{file}")
            except KeyError as error:
                raise CorruptArtefact(f"{url} holds no ml-100k/{file}") from error
            if hashlib.sha256(files[file]).hexdigest() != expected:
                raise CorruptArtefact(f"ml-100k/{file} of {url} is not the file expected")
    return files
