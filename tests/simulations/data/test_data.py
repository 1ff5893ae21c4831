import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.simulations.data.build import k_core_events
from fedrecall.simulations.data.describe import describe, gini
from fedrecall.simulations.data.places import list_datasets
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.synthetic import synthetic_dataset

Find = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "users", "catalogue", "rated", "events", "types"),
    [
        ("ml-100k", 943, 1682, 1682, 100_000, {"rate"}),
        ("ml-1m", 6040, 3883, 3706, 1_000_209, {"rate"}),
        ("movietweetings", 16_554, 10_506, 10_506, 100_000, {"rate"}),
        ("steam", 12_393, 5155, 5155, 128_804 + 70_477, {"purchase", "play"}),
    ],
)
def test_known_sets(
    data_folder: Find, name: str, users: int, catalogue: int, rated: int, events: int, types: set[str]
) -> None:
    folder = data_folder(name)
    data = load_dataset(name, data_path=folder)
    assert (data.events.n_users, data.events.n_items, data.events.n_events) == (users, catalogue, events)
    assert data.catalogue.source == "file"
    assert set(data.events.type_names) == types
    assert len(np.unique(data.events.items)) == rated
    assert all(data.catalogue.titles)
    assert len(set(data.user_ids)) == users
    assert data.cleaning["kept"] + sum(data.cleaning["dropped"].values()) == data.cleaning["rows_read"]


def test_ml_1m_row_by_row(data_folder: Find) -> None:
    folder = data_folder("ml-1m")
    data = load_dataset("ml-1m", data_path=folder)
    rows = [line.split("::") for line in (folder / "ratings.dat").read_text().splitlines()[:3000]]
    user = rows[0][0]
    mine = sorted((r for r in rows if r[0] == user), key=lambda r: int(r[3]))
    assert [data.catalogue.ids[i] for i in data.events.history(0)] == [r[1] for r in mine]
    weights = data.events.weights[: len(mine)]
    np.testing.assert_allclose(weights, [np.log2(1 + int(r[2]) / 5) for r in mine], rtol=1e-6)
    place = data.catalogue.ids.index("1193")
    assert data.catalogue.titles[place] == "One Flew Over the Cuckoo's Nest (1975)"
    assert data.catalogue.categories[place] == ("Drama",)
    assert data.catalogue.titles[data.catalogue.ids.index("73")].startswith("Misérables, Les")
    who = data.user_ids.index("1")
    assert {k: v[who] for k, v in data.groups.items()} == {
        "age": "<18",
        "gender": "F",
        "occupation": "K-12 student",
    }
    files = ("ratings.dat", "movies.dat", "users.dat")
    assert data.sha256 == hashlib.sha256(b"".join((folder / f).read_bytes() for f in files)).hexdigest()
    rated = load_dataset("ml-1m", data_path=folder, catalogue="rated")
    assert rated.catalogue.source == "rated"
    assert rated.catalogue.ids[:2] == (rows[0][1], rows[1][1])
    assert [rated.catalogue.ids[i] for i in rated.events.history(0)] == [r[1] for r in mine]


def test_ml_100k_items_and_groups(data_folder: Find) -> None:
    data = load_dataset("ml-100k", data_path=data_folder("ml-100k"))
    assert data.catalogue.titles[0] == "Toy Story (1995)"
    assert data.catalogue.categories[0] == ("Animation", "Children's", "Comedy")
    assert len(data.catalogue.category_names()) == 19
    who = data.user_ids.index("30")
    assert {k: v[who] for k, v in data.groups.items()} == {
        "age": "<18",
        "gender": "M",
        "occupation": "student",
    }


def test_steam_plays_follow_their_purchases(data_folder: Find) -> None:
    data = load_dataset("steam", data_path=data_folder("steam"))
    events = data.events
    play = events.type_names.index("play")
    users = events.users()
    plays = np.flatnonzero(events.types == play)
    assert (events.items[plays - 1] == events.items[plays]).mean() > 0.999
    assert (users[plays - 1] == users[plays]).all()
    assert events.weights[events.types != play].tolist() == [1.0] * int(np.sum(events.types != play))
    hours = [273.0, 87.0, 14.9]
    np.testing.assert_allclose(events.weights[plays[:3]], np.log2(1 + np.array(hours)), rtol=1e-6)


def test_movietweetings_five_core(data_folder: Find) -> None:
    data = load_dataset("movietweetings", data_path=data_folder("movietweetings"), k_core=5)
    assert (data.events.n_users, data.events.n_items, data.events.n_events) == (4333, 2414, 68_055)
    assert data.catalogue.source == "k-core"
    assert data.cleaning["k_core"]["events_dropped"] == 100_000 - 68_055
    assert data.events.counts().min() == 5
    assert np.bincount(data.events.items).min() == 5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.integers(0, 4))
def test_k_core_agrees_with_dropping_one_at_a_time(pairs: list[tuple[int, int]], k: int) -> None:
    left = set(pairs)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        weak = next((p for p in sorted(left) if users[p[0]] < k or items[p[1]] < k), None)
        if weak is None:
            break
        left.discard(weak)
    columns = np.array(pairs, dtype=np.int64).T
    assert k_core_events(columns[0], columns[1], k).tolist() == [p in left for p in pairs]


def test_synthetic_has_what_a_recall_model_must_find() -> None:
    data = synthetic_dataset(seed=1)
    events = data.events
    assert (events.n_users, events.n_items) == (600, 400)
    assert events.counts().min() >= 3
    assert 25 < events.counts().mean() < 31
    for user in range(600):
        history = events.history(user)
        assert len(set(history.tolist())) == len(history)
        assert len({i % 8 for i in history.tolist()}) <= 2  # two tastes
    follows = np.concatenate([np.diff(events.history(u)) == 8 for u in range(600)])
    assert follows.mean() > 0.25  # by chance about 1 in 50
    assert gini(np.bincount(events.items, minlength=400)) > 0.3
    assert synthetic_dataset(seed=1).sha256 == data.sha256 != synthetic_dataset(seed=2).sha256
    assert data.sha256 == "315032ee14a16ae1290008efa3318417204187e2aa7ea2c9a3b743bfe9ef5bed"
    with pytest.raises(ConfigError, match="items is 10"):
        synthetic_dataset(items=10)
    with pytest.raises(ConfigError, match="users is 0"):
        synthetic_dataset(users=0)


def test_describe(cache: Path) -> None:
    facts = describe("synthetic")
    data = load_dataset("synthetic")
    assert facts["interactions"] == data.events.n_events
    assert facts["density"] == data.events.n_events / (600 * 400)
    assert facts["history"]["median"] == np.median(data.events.counts())
    assert facts["times"]["days"] > 1
    assert sum(facts["groups"]["segment"].values()) == 600


def test_gini_agrees_with_mean_differences(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 50, 40)
    slow = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(slow, abs=1e-12)
    assert gini(np.full(7, 3)) == pytest.approx(0.0, abs=1e-12)
    assert gini(np.zeros(3)) == 0.0


def test_names_and_folders_that_do_not_exist(cache: Path, tmp_path: Path) -> None:
    assert [row["name"] for row in list_datasets()] == [
        "ml-100k",
        "ml-1m",
        "movietweetings",
        "steam",
        "synthetic",
    ]
    with pytest.raises(DataError, match="did you mean 'ml-1m'"):
        load_dataset("ml1m")
    with pytest.raises(DataError, match=r"lacks ratings\.dat, movies\.dat of ml-1m"):
        load_dataset("ml-1m", data_path=tmp_path)
    with pytest.raises(DataError, match=r"get ratings\.dat, movies\.dat .*--data-path"):
        load_dataset("ml-1m")
    with pytest.raises(DataError, match="is no folder"):
        load_dataset("steam", data_path=tmp_path / "nowhere")
    with pytest.raises(DataError, match="leave it out"):
        load_dataset("synthetic", data_path=tmp_path)
    with pytest.raises(DataError, match="leave them out"):
        load_dataset("synthetic", k_core=5)
