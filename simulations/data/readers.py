"""Readers of the known data sets: where their columns are, which genres and user attributes they have."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedrecall.client.events.cleaning import clean_events
from fedrecall.client.events.events import EventColumns, Events, RawEvents, read_events
from fedrecall.client.events.parsing import read_table
from fedrecall.client.events.tables import Column, Layout, Progress, Table
from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.items import ItemColumns, ItemFile, collect_items, read_items
from fedrecall.simulations.data.known import KNOWN, missing_files

TOP_RATING = 5.0

_AGE_BANDS = ((56, "56+"), (50, "50-55"), (45, "45-49"), (35, "35-44"), (25, "25-34"), (18, "18-24"))
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller",
    "War", "Western",
)  # fmt: skip
_OCCUPATIONS_1M = (
    "other", "educator", "artist", "clerical", "college student", "customer service", "healthcare",
    "executive", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales",
    "scientist", "self-employed", "engineer", "tradesman", "unemployed", "writer",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What the files of one data set hold, and which were read."""

    events: Events
    items: ItemFile
    groups: dict[str, dict[str, str]]
    files: tuple[Path, ...]


def read_known(name: str, folder: Path, progress: Progress | None = None) -> Source:
    """Read the data set ``name`` from ``folder``; raises DataError naming the files that are missing."""
    missing = missing_files(name, folder)
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} of {name}: give the folder that holds"
            f" {', '.join(KNOWN[name].files)} as --data-path"
        )
    if name == "steam":
        return _read_steam(folder, progress)
    if name == "ml-100k":
        recbole = (folder / "ml-100k.inter").is_file()
        return _read_recbole(folder, progress) if recbole else _read_ml_100k(folder, progress)
    return _read_dat(folder, name, progress)


def _read_ml_100k(folder: Path, progress: Progress | None) -> Source:
    """Read the official layout: ``u.data`` by tabs, ``u.item`` with one 0/1 column a genre."""
    layout = Layout(separator="|", encoding="latin-1", header=False)
    wanted: dict[str, Column] = {"item-id": 1, "title": 2}
    flags = [f"genre-{i}" for i in range(len(_GENRES_100K))]
    table = read_table(folder / "u.item", wanted | {f: 6 + i for i, f in enumerate(flags)}, layout)
    marks = np.array([table.columns[f].to_pylist() for f in flags]).T == "1"
    categories = [tuple(g for g, mark in zip(_GENRES_100K, row, strict=True) if mark) for row in marks]
    items = collect_items("u.item", table, table.columns["title"].to_pylist(), categories)
    columns = EventColumns(user=1, item=2, weight=3, time=4)
    raw = read_events(
        folder / "u.data",
        columns=columns,
        layout=Layout(separator="\t", header=False),
        event_name="rate",
        progress=progress,
    )
    users = folder / "u.user"
    groups = {}
    if users.is_file():
        groups = _groups(read_table(users, {"user": 1, "age": 2, "gender": 3, "occupation": 4}, layout))
    return _source(raw, items, groups, folder, ("u.data", "u.item", "u.user"))


def _read_recbole(folder: Path, progress: Progress | None) -> Source:
    """Read RecBole's atomic layout: tabs, headers of name and type."""
    layout = Layout(separator="\t")
    items = read_items(
        folder / "ml-100k.item",
        ItemColumns(
            item="item_id:token",
            title="movie_title:token_seq",
            categories="class:token_seq",
            category_separator=" ",
        ),
        layout,
    )
    columns = EventColumns(user="user_id:token", item="item_id:token", weight="rating:float", time="timestamp:float")
    raw = read_events(folder / "ml-100k.inter", columns=columns, layout=layout, event_name="rate", progress=progress)
    users = folder / "ml-100k.user"
    groups = {}
    if users.is_file():
        wanted: dict[str, Column] = {
            "user": "user_id:token",
            "age": "age:token",
            "gender": "gender:token",
            "occupation": "occupation:token",
        }
        groups = _groups(read_table(users, wanted, layout))
    return _source(raw, items, groups, folder, ("ml-100k.inter", "ml-100k.item", "ml-100k.user"))


def _read_dat(folder: Path, name: str, progress: Progress | None) -> Source:
    """Read ml-1m or movietweetings: ``::`` without headers."""
    movielens = name == "ml-1m"
    text = Layout(separator="::", header=False, encoding="latin-1" if movielens else "utf-8")
    items = read_items(folder / "movies.dat", ItemColumns(item=1, title=2, categories=3), text)
    columns = EventColumns(user=1, item=2, weight=3 if movielens else None, time=4)
    layout = Layout(separator="::", header=False)
    raw = read_events(folder / "ratings.dat", columns=columns, layout=layout, event_name="rate", progress=progress)
    users = folder / "users.dat"
    groups = {}
    if movielens and users.is_file():
        groups = _groups(read_table(users, {"user": 1, "gender": 2, "age": 3, "occupation": 4}, text))
    return _source(raw, items, groups, folder, ("ratings.dat", "movies.dat", "users.dat"))


def _read_steam(folder: Path, progress: Progress | None) -> Source:
    """Read purchases and plays; each play follows its purchase, since the files give no times."""
    layout = Layout(separator="\t")
    items = read_items(folder / "item_info.dat", ItemColumns(item="Game_ID", title="Game Name"), layout)
    bought = read_events(
        folder / "game_purchase.dat",
        columns=EventColumns(user="User_ID", item="Game_ID", weight="Purchase"),
        layout=layout,
        event_name="purchase",
        progress=progress,
    )
    played = read_events(
        folder / "game_play.dat",
        columns=EventColumns(user="User_ID", item="Game_ID", weight="Hours"),
        layout=layout,
        event_name="play",
        progress=progress,
    )
    events = clean_events([bought, played], known_items=items.ids)
    return Source(
        events=_play_after_purchase(events),
        items=items,
        groups={},
        files=_present(folder, KNOWN["steam"].files),
    )


def _play_after_purchase(events: Events) -> Events:
    """Move each play right behind the purchase of its game, where there is one."""
    pairs = events.users * len(events.item_ids) + events.items
    _, first, group = np.unique(pairs, return_index=True, return_inverse=True)
    order = np.argsort(first[group], kind="stable")
    return Events(
        users=events.users[order],
        items=events.items[order],
        times=None,
        types=events.types[order],
        weights=events.weights[order],
        user_ids=events.user_ids,
        item_ids=events.item_ids,
        type_names=events.type_names,
        report=events.report | {"order": "each play follows the purchase of its game"},
    )


def _source(
    raw: RawEvents,
    items: ItemFile,
    groups: dict[str, dict[str, str]],
    folder: Path,
    files: tuple[str, ...],
) -> Source:
    events = clean_events([raw], time_format="unix", weight_scale=TOP_RATING, known_items=items.ids)
    return Source(events=events, items=items, groups=groups, files=_present(folder, files))


def _present(folder: Path, files: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(folder / file for file in files if (folder / file).is_file())


def _groups(table: Table) -> dict[str, dict[str, str]]:
    """Return age band, gender and occupation of each user, in the words that both MovieLens sets share."""

    def labels(column: pa.Array) -> list[str]:
        return [value or "unknown" for value in column.to_pylist()]

    users = labels(table.columns["user"])
    occupations = labels(table.columns["occupation"])
    coded = all(x.isdecimal() and int(x) < len(_OCCUPATIONS_1M) for x in occupations)
    return {
        "age": dict(zip(users, map(_age_band, labels(table.columns["age"])), strict=True)),
        "gender": dict(zip(users, labels(table.columns["gender"]), strict=True)),
        "occupation": dict(zip(users, (_OCCUPATIONS_1M[int(x)] if coded else x for x in occupations), strict=True)),
    }


def _age_band(age: str) -> str:
    """Return MovieLens 1M's age band of an age in years (its own codes are the first year of a band)."""
    if not age.isdecimal():
        return "unknown"
    return next((band for start, band in _AGE_BANDS if int(age) >= start), "<18")
