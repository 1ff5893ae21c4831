"""Describing a data set in numbers."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.client.events.tables import Progress
from fedrecall.simulations.data.registry import load_dataset


def describe(name: str, data_path: Path | None = None, *, progress: Progress | None = None) -> dict[str, Any]:
    """Return counts, density, history quantiles, time span, event types, popularity and the cleaning report.

    Plain JSON data. ``popularity.gini`` is over the catalogue: 0 when all items are equally popular, towards
    1 when few have all events. Computed on private events: for the holder of the data, outside any epsilon.
    """
    dataset = load_dataset(name, data_path=data_path, progress=progress)
    events = dataset.events
    counts = events.counts()
    popularity = np.sort(np.bincount(events.items, minlength=events.n_items))
    pairs = len(np.unique(events.users() * events.n_items + events.items))
    quantiles = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
    span = None
    if events.times is not None:
        span = {
            "first": datetime.fromtimestamp(int(events.times.min()), UTC).isoformat(),
            "last": datetime.fromtimestamp(int(events.times.max()), UTC).isoformat(),
            "days": round(float(np.ptp(events.times)) / 86_400, 1),
        }
    types = np.bincount(events.types, minlength=len(events.type_names))
    top = popularity[-max(1, events.n_items // 100) :]
    return {
        "name": dataset.name,
        "users": events.n_users,
        "items": events.n_items,
        "interactions": events.n_events,
        "density": pairs / (events.n_users * events.n_items),
        "catalogue": dataset.catalogue.source,
        "items_with_events": int(np.sum(popularity > 0)),
        "items_with_title": sum(1 for title in dataset.catalogue.titles if title),
        "categories": len(dataset.catalogue.category_names()),
        "history": {key: float(np.quantile(counts, q)) for key, q in quantiles.items()}
        | {"mean": float(counts.mean()), "below_3": int(np.sum(counts < 3))},
        "times": span,
        "event_types": dict(zip(events.type_names, types.tolist(), strict=True)),
        "popularity": {
            "gini": gini(popularity),
            "share_of_top_1_percent": float(top.sum() / popularity.sum()),
        },
        "groups": {key: dict(sorted(_tally(labels).items())) for key, labels in dataset.groups.items()},
        "cleaning": dataset.cleaning,
        "sha256": dataset.sha256,
    }


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of non-negative ``counts``, 0 when they are equal or all zero."""
    ordered = np.sort(counts).astype(np.float64)
    total, n = ordered.sum(), len(ordered)
    if total == 0.0:
        return 0.0
    return float(2.0 * np.sum(np.arange(1, n + 1) * ordered) / (n * total) - (n + 1) / n)


def _tally(labels: tuple[str, ...]) -> dict[str, int]:
    names, counts = np.unique(np.array(labels), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))
