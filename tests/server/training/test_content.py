import numpy as np
import pytest
from scipy import sparse

from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Comparison
from fedrecall.server.training.content import Content, extend, with_prior
from fedrecall.server.training.start import first_item_vectors

N, M, P = 40, 10, 25


@pytest.fixture
def features() -> sparse.csr_array:
    return sparse.csr_array(np.random.default_rng(0).standard_normal((N, 6)) * (np.arange(N) < N - 1)[:, None])


def content(features: sparse.csr_array, weight: float = 5.0) -> Content:
    return Content(features=features, items=P, weight=weight)


def test_the_prior_stands_so_many_edges_above_the_noise(features: sparse.csr_array) -> None:
    top, direction = np.arange(P)[::-1].copy(), np.zeros(P)
    moments = np.random.default_rng(1).standard_normal((M, M))
    found = with_prior(moments, content(features), top, direction, edge=2.0)
    likeness = (features @ features.T).toarray()[np.ix_(top, top)]
    scale = 5.0 * 2.0 / np.linalg.eigvalsh(likeness[:M, :M])[-1]
    expected = scale * likeness
    expected[:M, :M] += moments
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_popularity_is_projected_out_of_the_prior(features: sparse.csr_array) -> None:
    direction = np.random.default_rng(2).random(P)
    direction /= np.linalg.norm(direction)
    found = with_prior(None, content(features), np.arange(P), direction, edge=0.0)
    np.testing.assert_allclose(found @ direction, 0.0, atol=1e-9)
    np.testing.assert_allclose(found, found.T, atol=1e-9)


def test_without_noise_or_without_content_the_prior_is_silent(features: sparse.csr_array) -> None:
    moments = np.eye(M)
    for some, edge in ((content(features), 0.0), (content(sparse.csr_array((N, 3))), 2.0)):
        found = with_prior(moments, some, np.arange(P), np.zeros(P), edge)
        expected = np.zeros((P, P))
        expected[:M, :M] = moments
        np.testing.assert_array_equal(found, expected)


def test_other_items_follow_by_kernel_ridge_regression(features: sparse.csr_array) -> None:
    """Against the primal form: w = (X'X + I)^-1 X'y predicts what the kernel form does."""
    top = np.random.default_rng(3).permutation(N)[:P]
    vectors = np.zeros((N, 4))
    vectors[top] = np.random.default_rng(4).standard_normal((P, 4))
    before = vectors.copy()
    extend(vectors, content(features), top)
    x = features.toarray()
    primal = np.linalg.solve(x[top].T @ x[top] + np.eye(6), x[top].T @ before[top])
    rest = np.setdiff1d(np.arange(N), top)
    np.testing.assert_allclose(vectors[rest], 0.7 * x[rest] @ primal, atol=1e-9)
    np.testing.assert_array_equal(vectors[top], before[top])
    assert not vectors[N - 1].any() or N - 1 in top, "an item without content has no taste"


def test_content_alone_groups_items() -> None:
    """Two kinds of items and no released moments: of one kind they point one way, and cold ones go along."""
    kind = np.arange(N) % 2
    features = sparse.csr_array(np.eye(2)[kind])
    compared = Comparison(top=np.arange(P), weights=np.ones(P), direction=np.zeros(P), reach=8.0)
    found = first_item_vectors(np.ones(N), None, compared, None, 4, power=0.3, cut=0.5, content=content(features))
    taste = found.vectors[:, 1:]
    products = taste @ taste.T
    assert products[kind[:, None] == kind].min() > 0.3
    np.testing.assert_allclose(products[kind[:, None] != kind], 0.0, atol=1e-9)
    assert found.directions == 2


def test_content_finds_what_noise_hides() -> None:
    """The planted direction is in the content too, and half as strong as the noise's edge in the moments."""
    rng = np.random.default_rng(5)
    size, sigma = 200, 1.0
    planted = rng.choice([-1.0, 1.0], size) / np.sqrt(size)
    edge = 2 * sigma * np.sqrt(size / 2)
    noise = np.triu(rng.standard_normal((size, size)) * sigma / np.sqrt(2), 1)
    moments = 0.5 * edge * np.outer(planted, planted) + noise + noise.T
    compared = Comparison(top=np.arange(size), weights=np.ones(size), direction=np.zeros(size), reach=8.0)
    mechanism = Mechanism(name="second_moments", clip_norm=1.0, noise_multiplier=sigma)
    kinds = sparse.csr_array(np.stack([planted > 0, planted < 0], axis=1).astype(float))

    def cosine(some: Content | None) -> float:
        made = first_item_vectors(
            np.ones(size), moments, compared, mechanism, 3, power=0.3, cut=0.5, content=some
        ).vectors[:, 1:]
        return float(np.linalg.norm(planted @ (made / np.maximum(np.linalg.norm(made, axis=0), 1e-12))))

    assert cosine(Content(features=kinds, items=size, weight=2.0)) > 0.9
    assert cosine(None) < 0.6
