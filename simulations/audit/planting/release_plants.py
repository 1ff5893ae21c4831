"""Seeded bugs between the noise and what is released: signal that no noise hides. None of it is sound."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum
from fedrecall.server.training import rounds
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import start

_LITTLE = 1e-4
"""Of the sum: far less than the noise hides."""

Sums = Mapping[str, np.ndarray]


def _with_sums(change: Callable[[Any, Sums], Any]) -> Callable[[Any], Any]:
    """Change the state after a round by what devices summed in it."""

    def wrap(one_round: Any) -> Any:
        def instead(state: Any, plan: Any, mechanism: Mechanism, environment: Any, **more: Any) -> Any:
            sums: dict[str, np.ndarray] = {}

            def collect(*asked: Any) -> Any:
                got: CohortSum = environment.collect(*asked)
                sums.update(got.arrays)
                return got

            after = one_round(state, plan, mechanism, replace(environment, collect=collect), **more)
            return change(after, sums)

        return instead

    return wrap


def _more(arrays: Sums, sums: Sums) -> dict[str, np.ndarray]:
    """Return ``arrays`` with a little of what devices summed."""
    return {n: (a + _LITTLE * sums[n]).astype(a.dtype) if n in sums else a for n, a in arrays.items()}


def _in_last_bits(arrays: Sums, sums: Sums) -> dict[str, np.ndarray]:
    """Return ``arrays``, each number moved to the next one on the side where its sum lies."""
    return {n: np.nextafter(a, a + np.sign(sums[n]).astype(a.dtype)) if n in sums else a for n, a in arrays.items()}


last_bits = _with_sums(lambda after, sums: replace(after, arrays=_in_last_bits(after.arrays, sums)))
"""Write the signs of the exact sum into the last bits of the weights."""

after_optimiser = _with_sums(lambda after, sums: replace(after, arrays=_more(after.arrays, sums)))
"""Add a little of the sum to the weights, after the optimiser."""


def _averaged(after: Any, sums: Sums) -> Any:
    if after.round < 4 or after.average is None:
        return after
    return replace(after, average=replace(after.average, arrays=_more(after.average.arrays, sums)))


in_the_average = _with_sums(_averaged)
"""Add a little of the sum to the average of the weights, from the fourth round on."""


def beside_the_noise(add: Any) -> Any:
    """Add a twentieth of the sum to it once more, after its noise."""

    def noised(sums: Sums, mechanism: Mechanism, noise: Any) -> Any:
        return {name: array + 0.05 * sums[name] for name, array in add(sums, mechanism, noise).items()}

    return noised


def moved_model(write: Any) -> Any:
    """Write a release whose weights are a little larger than those of the last round."""

    def written(folder: Any, *, model: Sums, **more: Any) -> Any:
        return write(folder, model={n: a * a.dtype.type(1 + _LITTLE) for n, a in model.items()}, **more)

    return written


def moved_items(vectors: Any) -> Any:
    """Write a release whose items' vectors are a little off those of the last round."""
    return lambda arrays, features: vectors(arrays, features) + np.float32(_LITTLE)


def moved_checkpoint(save: Any) -> Any:
    """Keep other weights in a checkpoint than were released: a resumed training goes on from them."""

    def saved(folder: Any, state: Any, **more: Any) -> Any:
        moved = {n: a * a.dtype.type(1 + _LITTLE) for n, a in state.arrays.items()}
        return save(folder, replace(state, arrays=moved), **more)

    return saved


@contextmanager
def exact_popularity_in_vectors() -> Iterator[None]:
    """Make items' popularity of the exact counts, and all the rest of the released ones."""
    counts: dict[str, np.ndarray] = {}

    def remember(make: Any) -> Any:
        def summed(store: Any, unit: Any) -> CohortSum:
            found: CohortSum = make(store, unit)
            counts["exact"] = found.arrays["popularity"]
            return found

        return summed

    def exact(make: Any) -> Any:
        return lambda popularity, *rest, **more: make(counts["exact"], *rest, **more)

    with ExitStack() as stack:
        stack.enter_context(wrapped(start, "popularity_sum", remember))
        stack.enter_context(wrapped(start, "first_item_vectors", exact))
        yield


@contextmanager
def clip_by_exact_count() -> Iterator[None]:
    """Let the clip follow the exact count, and release another one with noise."""
    counts: dict[str, float] = {}

    def remember(add: Any) -> Any:
        def noised(sums: Sums, *rest: Any) -> Any:
            counts["exact"] = float(sums[WITHIN_CLIP])
            return add(sums, *rest)

        return noised

    def exact(move: Any) -> Any:
        return lambda clip_norm, first, count, *rest: move(clip_norm, first, counts["exact"], *rest)

    with wrapped(rounds, "noise_adaptively", remember), wrapped(rounds, "next_clip", exact):
        yield
