"""Hold-outs at random, by the user's own files, and with repeats: against loops over users, and in the words said."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import make_split, split_given, split_loo, split_random, split_temporal

from .hand_made import dataset, histories, of

events = st.lists(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), max_size=10), min_size=1, max_size=6)


@given(events, st.integers(0, 3), st.sampled_from(["mask", "recommend"]))
@settings(deadline=None)
def test_random_hides_one_thing_for_the_test_and_another_for_validation(
    raw: list[list[tuple[int, int]]], seed: int, repeats: str
) -> None:
    ordered = [[i for i, _ in sorted(history, key=lambda x: x[1])] for history in raw]
    able = {u for u, items in enumerate(ordered) if len(set(items) if repeats == "mask" else items) >= 3}
    data = dataset(raw)
    if not able:
        with pytest.raises(DataError, match="3 "):
            make_split(data, "random", seed, repeats=repeats)  # type: ignore[arg-type]
        return
    split = make_split(data, "random", seed, repeats=repeats)  # type: ignore[arg-type]
    test, validation = of(split.test), of(split.validation)
    assert set(test) == set(validation) == able
    for user, items in enumerate(ordered):
        train, context = split.train.history(user).tolist(), split.test_context.history(user).tolist()
        if user not in able:
            assert train == context == items
            continue
        (hidden,), (second,) = test[user], validation[user]
        if repeats == "mask":
            assert hidden != second
            assert context == [item for item in items if item != hidden]
            assert train == [item for item in items if item not in (hidden, second)]
        else:
            assert Counter(context) + Counter([hidden]) == Counter(items)
            assert Counter(train) + Counter([hidden, second]) == Counter(items)
    assert histories(split.validation_context) == histories(split.train)


def test_random_draws_are_uniform_and_seeded() -> None:
    data = dataset([[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]] * 4000)
    split, again, other = (make_split(data, "random", seed) for seed in (5, 5, 6))
    for targets in (split.test, split.validation):
        counts = np.bincount(targets.items, minlength=5)
        chi2 = np.sum((counts - 800) ** 2 / 800)
        assert chi2 < 23.5  # of 4 degrees of freedom: one in ten thousand; the last item alone gives 16,000
    np.testing.assert_array_equal(split.test.items, again.test.items)
    assert not np.array_equal(split.test.items, other.test.items)


@given(events)
@settings(deadline=None)
def test_loo_with_repeats_takes_the_last_event_whatever_its_item(raw: list[list[tuple[int, int]]]) -> None:
    ordered = [[i for i, _ in sorted(history, key=lambda x: x[1])] for history in raw]
    able = [u for u, items in enumerate(ordered) if len(items) >= 3]
    if not able:
        with pytest.raises(DataError, match="3 events"):
            split_loo(dataset(raw), repeats="recommend")
        return
    split = split_loo(dataset(raw), repeats="recommend")
    assert of(split.test) == {u: ordered[u][-1:] for u in able}
    assert of(split.validation) == {u: ordered[u][-2:-1] for u in able}
    assert histories(split.train) == [items[:-2] if len(items) >= 3 else items for items in ordered]
    assert split.notes["test_items_known_before"] == sum(ordered[u][-1] in ordered[u][:-1] for u in able)
    assert split.notes["events_after_test"] == 0


def test_temporal_with_repeats_counts_items_that_were_met_before() -> None:
    raw = [[(1, 0), (2, 1), (1, 8)], [(3, 2), (3, 9), (3, 10)], [(4, 3), (4, 4), (4, 5), (4, 6), (5, 7)]]
    shares = {"test_share": 0.2, "validation_share": 0.1}
    split = split_temporal(dataset(raw), **shares, repeats="recommend")  # type: ignore[arg-type]
    assert of(split.test) == {0: [1], 1: [3, 3]}
    assert of(split.validation) == {2: [5]}
    assert split.notes["test_items_known_before"] == 3
    with pytest.raises(DataError, match="too few"):
        split_temporal(dataset(raw), **shares)  # type: ignore[arg-type]


def test_given_parts_are_taken_as_they_are() -> None:
    raw = [[(1, 1), (2, 2), (1, 3), (3, 4), (4, 5)], [(5, 1), (6, 2), (5, 3)], [(0, 9)]]
    data = dataset(raw, parts=[0, 2, 1, 1, 2, 0, 1, 2, 2])
    split = make_split(data, "given")
    assert of(split.validation) == {0: [3], 1: [6]}  # item 1 of user 0 was known
    assert of(split.test) == {0: [2, 4], 2: [0]}  # item 5 of user 1 was known
    assert histories(split.train) == [[1], [5], []]
    assert histories(split.test_context) == [[1, 1, 3], [5, 6], []]
    assert split.notes["test_events_known_before"] == 1
    assert "the 4 events of the given test file, but for 1 of items that their user had before" in split.held_out
    again = split_given(data, repeats="recommend")
    assert of(again.test) == {0: [2, 4], 1: [5], 2: [0]}
    assert of(again.validation) == {0: [1, 3], 1: [6]}
    assert again.notes["test_items_known_before"] == 1


def test_given_says_which_test_events_training_has_already_passed() -> None:
    split = make_split(dataset([[(1, 1), (2, 2), (3, 3), (4, 9)]], parts=[2, 0, 1, 0]), "given")
    assert split.notes["test_events_earlier_than_training"] == 1
    assert "1 of the test are earlier than their user's last training event" in split.held_out


def test_given_refuses_no_parts_and_parts_without_targets() -> None:
    with pytest.raises(DataError, match="--validation FILE and --test FILE"):
        make_split(dataset([[(1, 1), (2, 2), (3, 3)]]), "given")
    with pytest.raises(DataError, match=r"test part of hand made has no target \(1 of 1 events"):
        make_split(dataset([[(1, 1), (2, 2), (1, 3)]], parts=[0, 1, 2]), "given")
    untimed = dataset([[(1, 0), (2, 0), (1, 0)]], parts=[0, 1, 2], timed=False)
    with pytest.raises(DataError, match="is it the same file"):
        split_given(untimed, repeats="recommend")


@pytest.mark.parametrize(
    ("protocol", "repeats", "said"),
    [
        ("loo", "mask", "the last item that each person with at least 3 different items met for the first time"),
        ("loo", "recommend", "the last event of each person with at least 3, whether or not its item was met before"),
        ("random", "mask", "one item, with all of its events, of each person with at least 3 different items, drawn"),
        ("random", "recommend", "one event of each person with at least 3 events, drawn at random"),
        ("temporal", "mask", "all items that a person met for the first time from 1970-01-01 00:00:26 UTC on"),
        ("temporal", "recommend", "met before or not, from 1970-01-01 00:00:26 UTC on"),
        ("given", "mask", "the 3 events of the given test file; those"),
    ],
)
def test_what_was_held_out_is_said_exactly(protocol: str, repeats: str, said: str) -> None:
    raw = [[(item, 3 * item + user) for item in range(9)] for user in range(3)] + [[(0, 25), (7, 26), (8, 27)]]
    data = dataset(raw, parts=[*([0] * 7 + [1, 2]) * 3, 0, 0, 0])
    split = make_split(data, protocol, repeats=repeats)  # type: ignore[arg-type]
    assert said in split.held_out
    assert split.held_out.endswith("the parts that the data was given in are not used") == (protocol != "given")


def test_files_of_parts_are_imported_as_parts(cache: Path, tmp_path: Path) -> None:
    logs = {
        "train": "u,i,t\nann,a,10\nann,b,20\nbob,b,10\n",
        "validation": "u,i,t\nann,c,15\nbob,a,30\nann,a,10\n",  # the last line is training's own event
        "test": "u,i,t\nbob,c,40\nann,d,5\n",
    }
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    spec = ImportSpec(
        files=(tmp_path / "train",),
        validation_files=(tmp_path / "validation",),
        test_files=(tmp_path / "test",),
        name="parts",
        user="u",
        item="i",
        time="t",
    )
    report = import_files(spec)
    assert report["cleaning"]["dropped"]["duplicate"] == 1
    data = load_dataset("parts")
    split = make_split(data, "given")
    ids = data.catalogue.ids

    def named(found: dict[int, list[int]]) -> dict[str, list[str]]:
        return {data.user_ids[user]: [ids[item] for item in items] for user, items in found.items()}

    assert named(of(split.validation)) == {"ann": ["c"], "bob": ["a"]}
    assert named(of(split.test)) == {"bob": ["c"], "ann": ["d"]}
    assert named(dict(enumerate(histories(split.train)))) == {"ann": ["a", "b"], "bob": ["b"]}
    assert named(dict(enumerate(histories(split.test_context)))) == {"ann": ["a", "c", "b"], "bob": ["b", "a"]}


@pytest.mark.parametrize(("again", "warns"), [(1, False), (3, True)])
def test_an_import_says_how_many_events_are_repeats(cache: Path, tmp_path: Path, again: int, warns: bool) -> None:
    rows = [(user, item) for user in range(5) for item in [*range(20 - again), *range(again)]]
    lines = [f"u{user},i{item},{1_600_000_000 + n}" for n, (user, item) in enumerate(rows)]
    (tmp_path / "log.csv").write_text("\n".join(["u,i,t", *lines]) + "\n")
    spec = ImportSpec(files=(tmp_path / "log.csv",), name="again", user="u", item="i", time="t")
    report = import_files(spec)["cleaning"]
    assert report["repeats"] == pytest.approx(again / 20)
    said = [warning for warning in report["warnings"] if "data.repeats=recommend" in warning]
    assert [warning.startswith("15% of the events") for warning in said] == [True] * warns


def test_one_of_two_parts_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--validation and --test go together"):
        ImportSpec(files=(tmp_path / "a",), test_files=(tmp_path / "b",), name="parts", user="u", item="i")


def test_random_needs_three(small_repeats: list[list[tuple[int, int]]]) -> None:
    with pytest.raises(DataError, match="3 different items"):
        split_random(dataset(small_repeats))
    assert len(split_random(dataset(small_repeats), repeats="recommend").test.users) == 1
    with pytest.raises(ConfigError, match="mask, recommend"):
        split_random(dataset(small_repeats), repeats="both")  # type: ignore[arg-type]


@pytest.fixture
def small_repeats() -> list[list[tuple[int, int]]]:
    """One person with one item, four times."""
    return [[(1, 1), (1, 2), (1, 3), (1, 4)]]
