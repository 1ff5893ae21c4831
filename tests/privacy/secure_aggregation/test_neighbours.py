"""The graph: its published sizes, its tails by an independent library and by lot, and what it looks like."""

import collections
import math

import networkx
import numpy as np
import pytest
from scipy.stats import hypergeom

from fedrecall.privacy.secure_aggregation.neighbours import COMPLETION, SECRECY, Graph, graph_for, graph_over
from fedrecall.protocol.errors import PlanError


def test_sizes_are_the_published_ones() -> None:
    """Bell and others 2020: 1,000 devices, 2^-40 and 2^-30."""
    found = graph_for(1000, dropout=0.3, colluding=0.1, adversary="curious")
    assert (found.neighbours, found.threshold) == (100, 38)
    found = graph_for(1000, dropout=0.1, colluding=0.05, adversary="curious", majority=True)
    assert (found.neighbours, found.threshold) == (45, 23)


def chances(devices: int, dropout: float, colluding: float, graph: Graph, active: bool) -> tuple[float, float]:
    """Secrecy and completion by scipy's distribution."""
    bad, gone, k, t = math.ceil(colluding * devices), math.ceil(dropout * devices), graph.neighbours, graph.threshold
    least = 2 * t - k if active else t
    opened = devices * hypergeom(devices - 1, bad, k).sf(least - 1)
    if k < devices - 1:
        run, needed = (k // 2, t - k // 2 - k % 2) if active else (k // 2, k // 2)
        opened += devices * hypergeom(devices, bad if active else bad + gone, run).sf(needed - 1)
    return opened, devices * hypergeom(devices - 1, devices - 1 - gone, k).cdf(t - 1)


@pytest.mark.parametrize("devices", [20, 101, 400])
@pytest.mark.parametrize(("dropout", "colluding"), [(0.0, 0.05), (0.1, 0.05), (0.2, 0.2), (0.3, 0.0)])
@pytest.mark.parametrize("active", [False, True])
def test_both_chances_hold_and_no_smaller_graph_does_it(
    devices: int, dropout: float, colluding: float, active: bool
) -> None:
    adversary = "active" if active else "curious"
    found = graph_for(devices, dropout=dropout, colluding=colluding, adversary=adversary)
    opened, short = chances(devices, dropout, colluding, found, active)
    assert opened <= SECRECY * (1 + 1e-6) and short <= COMPLETION * (1 + 1e-6)
    assert found.secrecy == pytest.approx(opened, rel=1e-6, abs=1e-300)
    assert found.completion == pytest.approx(short, rel=1e-6, abs=1e-300)
    for k in range(max(2, found.neighbours - 2), found.neighbours):
        if not (k % 2 and devices % 2):
            for t in range(k // 2 + 1 if active else 1, k + 1):
                smaller = Graph(neighbours=k, threshold=t, secrecy=1, completion=1)
                opened, short = chances(devices, dropout, colluding, smaller, active)
                assert opened > SECRECY or short > COMPLETION


@pytest.mark.parametrize("active", [False, True])
def test_an_active_server_needs_a_majority_beyond_colluders(active: bool) -> None:
    found = graph_for(8, dropout=0.25, colluding=0.125, adversary="active" if active else "curious")
    assert found.neighbours == 7
    assert found.threshold == (5 if active else 2), "1 colluder: t of both kinds from 7 + 1 shares"


@pytest.mark.parametrize(("devices", "dropout", "colluding"), [(2, 0, 0), (10, 0.9, 0.5), (10, -0.1, 0), (10, 0, 1.0)])
def test_what_no_graph_bears_is_refused(devices: int, dropout: float, colluding: float) -> None:
    with pytest.raises(PlanError):
        graph_for(devices, dropout=dropout, colluding=colluding)


@pytest.mark.parametrize(("size", "k"), [(3, 2), (5, 9), (8, 4), (10, 5), (30, 11), (31, 12)])
def test_a_graph_is_regular_symmetric_and_as_connected_as_can_be(size: int, k: int) -> None:
    cohort = [3 * number + 1 for number in range(size)]
    graph = graph_over(cohort, k, b"seed")
    drawn = networkx.Graph([(one, other) for one, others in graph.items() for other in others])
    assert set(drawn) == set(cohort) and all(degree == min(k, size - 1) for _, degree in drawn.degree)
    assert all(one in graph[other] and one != other for one, others in graph.items() for other in others)
    assert networkx.node_connectivity(drawn) == min(k, size - 1)
    assert graph == graph_over(cohort[::-1], k, b"seed")


def test_an_odd_graph_of_an_odd_cohort_is_refused() -> None:
    with pytest.raises(PlanError, match="even"):
        graph_over(range(11), 5, b"seed")


def test_neighbours_are_drawn_evenly() -> None:
    """Over 2,000 seeds every other device is next to device 0 equally often; 6 sigma."""
    seen: collections.Counter[int] = collections.Counter()
    for seed in range(2000):
        seen.update(graph_over(range(20), 6, seed.to_bytes(4, "big"))[0])
    expected, std = 2000 * 6 / 19, math.sqrt(2000 * 6 / 19 * 13 / 19)
    assert np.abs(np.array([seen[n] for n in range(1, 20)]) - expected).max() < 6 * std
