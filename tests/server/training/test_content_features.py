import math

import numpy as np
import pytest

from fedrecall.server.training.content_features import content_features


def likeness(titles: list[str], categories: list[tuple[str, ...]] | None = None) -> np.ndarray:
    features = content_features(titles, categories or [()] * len(titles))
    assert features is not None
    return (features @ features.T).toarray()


def test_years_fall_off_with_their_distance() -> None:
    found = likeness(["One (1990)", "Two (2000)", "Three (1990)", "Four", "Five (20000)"])
    expected = np.zeros((5, 5))
    years = {0: 1990, 1: 2000, 2: 1990}
    for a, x in years.items():
        for b, y in years.items():
            expected[a, b] = math.exp(-abs(x - y) / 10)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_rare_categories_count_more_than_common_ones() -> None:
    found = likeness([""] * 5, [("a", "b"), ("a", "c"), ("b",), ("a",), ()])
    idf = {"a": math.log(5 / 3), "b": math.log(5 / 2), "c": math.log(5)}
    length = {0: math.hypot(idf["a"], idf["b"]), 1: math.hypot(idf["a"], idf["c"])}
    assert found[0, 1] == pytest.approx(idf["a"] ** 2 / (length[0] * length[1]))
    assert found[0, 2] == pytest.approx(idf["b"] / length[0])
    np.testing.assert_allclose(np.diagonal(found), [1, 1, 1, 1, 0])
    assert not found[4].any()


def test_words_of_one_title_alone_say_nothing() -> None:
    found = likeness(["Half-Life", "Half-Life 2", "Portal 2", "Braid", "HALF LIFE"])
    assert found[0, 4] == pytest.approx(1.0), "case and hyphens do not matter"
    assert 0 < found[0, 1] < 1 and 0 < found[1, 2] < 1 and found[0, 2] == 0
    assert not found[3].any()


def test_parts_add_up() -> None:
    titles, categories = ["Heat (1995)", "Heat (1985)", "Cold", "Ice"], [("Crime",), ("Crime",), ("Drama",), ()]
    found = likeness(titles, categories)
    assert found[0, 1] == pytest.approx(1.0 + math.exp(-1.0) + 1.0)
    assert found[0, 0] == pytest.approx(3.0) and found[2, 2] == pytest.approx(1.0) and found[3, 3] == 0


def test_a_catalogue_of_numbers_alone_has_no_content() -> None:
    assert content_features(["", "", ""], [(), (), ()]) is None
    assert content_features(["only once", "never again"], [("all",), ("all",)]) is None
