import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.synthetic import synthetic_dataset


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """Return the folder of a real data set; skips where it is absent, since its terms forbid shipping it."""
    root = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    root = Path(os.environ.get("FEDRECALL_TEST_DATA", root))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            pytest.skip(f"no real data: {name} is not in the folder that FEDRECALL_TEST_DATA names")
        return folder

    return find


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Move the cache of data sets into an empty folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDRECALL_CACHE", str(folder))
    yield folder


@pytest.fixture(scope="session")
def small_dataset() -> Dataset:
    """Return 120 users, 96 items, about 12 events each."""
    return synthetic_dataset(users=120, items=96, events_per_user=12, tastes=4, seed=7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)
