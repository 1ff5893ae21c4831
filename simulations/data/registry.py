"""Loading a data set by its name."""

import difflib
from pathlib import Path

from fedrecall.client.events.tables import Progress
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.build import CatalogueChoice, build_dataset
from fedrecall.simulations.data.cache import check_folder, sha256_of_files
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.fetch import fetch_dataset
from fedrecall.simulations.data.importing.importer import read_imported
from fedrecall.simulations.data.known import KNOWN
from fedrecall.simulations.data.places import cache_folder, imported_folder, imported_names
from fedrecall.simulations.data.readers import read_known
from fedrecall.simulations.data.synthetic import synthetic_dataset


def load_dataset(
    name: str,
    *,
    data_path: Path | None = None,
    catalogue: CatalogueChoice = "file",
    k_core: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set by name.

    A known set is read from ``data_path``, else from the cache, else fetched (ml-100k alone). ``catalogue``
    and ``k_core`` are as in ``build_dataset``; ``seed`` matters to ``synthetic`` alone.

    Raises DataError for an unknown name (naming the nearest), missing or malformed files, or settings that do
    not apply; CorruptArtefact when the cache is damaged.
    """
    if name in KNOWN:
        folder = _folder(name, data_path, progress)
        source = read_known(name, folder, progress)
        return build_dataset(
            name=name,
            events=source.events,
            items=source.items,
            catalogue=catalogue,
            k_core=k_core,
            groups=source.groups,
            sha256=sha256_of_files(source.files),
        )
    if data_path is not None:
        raise DataError(f"--data-path is for {', '.join(KNOWN)}, not for {name!r}: leave it out")
    if name == "synthetic":
        if k_core or catalogue != "file":
            raise DataError("synthetic has neither k_core nor a 'rated' catalogue: leave them out")
        return synthetic_dataset(seed=seed)
    if imported_folder(name).is_dir() and name in imported_names():
        events, items, sha256 = read_imported(name)
        return build_dataset(
            name=name,
            events=events,
            items=items,
            catalogue=catalogue,
            k_core=k_core,
            groups={},
            sha256=sha256,
        )
    names = [*KNOWN, "synthetic", *imported_names()]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    raise DataError(f"no data set {name!r}: {hint} (or bring one with `fedrecall data import`)")


def _folder(name: str, data_path: Path | None, progress: Progress | None) -> Path:
    """Return the folder to read a known data set from."""
    if data_path is not None:
        if not Path(data_path).is_dir():
            raise DataError(f"--data-path {data_path} is no folder: give the one with {KNOWN[name].files[0]}")
        return Path(data_path)
    cached = cache_folder() / name
    if cached.is_dir():
        check_folder(cached, f"delete the folder, or run `fedrecall data fetch {name}` to replace it")
        return cached
    return fetch_dataset(name, progress=progress)
