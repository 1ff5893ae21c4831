"""Generated data with what a recall model must find: tastes, popularity, and order.

Each item belongs to one taste and has a Zipf popularity inside it. A user prefers two tastes, wanders between
them, and often goes on to the item that follows the last one in its taste, so that the sequence tells more
than the set. Nothing is downloaded; the same arguments give the same data on every machine.
"""

import hashlib

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.data.dataset import Catalogue, Dataset

STAY = 0.9
FOLLOW = 0.5
START = 1_600_000_000


def synthetic_dataset(
    *,
    users: int = 600,
    items: int = 400,
    events_per_user: int = 30,
    tastes: int = 8,
    seed: int = 0,
) -> Dataset:
    """Generate a data set of ``users`` with about ``events_per_user`` distinct items each, at least 3.

    Memory and time are linear in ``users * events_per_user`` (about 60 bytes each at the peak). Raises
    ConfigError for sizes that cannot be drawn.
    """
    for name, value, least in (
        ("users", users, 1),
        ("tastes", tastes, 2),
        ("events_per_user", events_per_user, 3),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}: choose at least {least}")
    if items < 4 * tastes or items < 2 * events_per_user:
        raise ConfigError(
            f"items is {items}: choose at least {max(4 * tastes, 2 * events_per_user)}, four times the tastes"
            " and twice the events per user"
        )
    rng = public_rng(seed, "synthetic", users, items, events_per_user, tastes)
    taste_of = np.arange(items) % tastes
    sequence = _walk(rng, users=users, items=items, steps=2 * events_per_user, tastes=tastes)
    wanted = np.clip(rng.poisson(events_per_user, users), 3, None)
    owner, item = _distinct(sequence, wanted)
    gaps = rng.exponential(6 * 3600.0, len(item)) + 1
    starts = rng.integers(0, 200 * 86_400, users)
    first = np.searchsorted(owner, np.arange(users))
    elapsed = np.cumsum(gaps)
    times = START + starts[owner] + (elapsed - elapsed[first][owner]).astype(np.int64)
    events = EventStore.from_columns(
        users=owner, items=item, n_users=users, n_items=items, times=times, type_names=("view",)
    )
    digest = hashlib.sha256(owner.tobytes() + item.tobytes() + times.tobytes()).hexdigest()
    segments = rng.choice(["a", "b"], users)
    return Dataset(
        name="synthetic",
        catalogue=Catalogue(
            ids=tuple(f"item-{i}" for i in range(items)),
            titles=tuple(f"Item {i // tastes + 1} of taste {t + 1}" for i, t in enumerate(taste_of)),
            categories=tuple((f"taste {t + 1}",) for t in taste_of),
            source="file",
        ),
        user_ids=tuple(f"user-{u}" for u in range(users)),
        events=events,
        groups={"segment": tuple(segments.tolist())},
        cleaning={
            "rows_read": len(item),
            "kept": len(item),
            "dropped": {},
            "event_types": {"view": len(item)},
        },
        sha256=digest,
    )


def _walk(rng: np.random.Generator, *, users: int, items: int, steps: int, tastes: int) -> np.ndarray:
    """Draw ``[users, steps]`` items; item ``i`` has rank ``i // tastes`` in taste ``i % tastes``."""
    size = items // tastes
    popularity = np.cumsum(1.0 / (np.arange(size) + 3.0))
    popularity /= popularity[-1]
    liked = np.stack([rng.integers(0, tastes, users), rng.integers(0, tastes, users)])
    everyone = np.arange(users)
    side = np.zeros(users, dtype=np.int64)
    rank = np.searchsorted(popularity, rng.random(users))
    walk = np.empty((users, steps), dtype=np.int64)
    for step in range(steps):
        side = np.where(rng.random(users) < STAY, side, 1 - side)
        drawn = np.searchsorted(popularity, rng.random(users))
        rank = np.where(rng.random(users) < FOLLOW, (rank + 1) % size, drawn)
        walk[:, step] = rank * tastes + liked[side, everyone]
    return walk


def _distinct(walk: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return user and item of the first ``wanted[u]`` distinct items of each walk, in order."""
    order = np.argsort(walk, axis=1, kind="stable")
    ranked = np.take_along_axis(walk, order, axis=1)
    again = np.zeros(walk.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    nth = np.cumsum(~again, axis=1)
    keep = ~again & (nth <= wanted[:, None])
    owner, step = np.nonzero(keep)
    return owner, walk[owner, step]
