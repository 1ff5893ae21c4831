"""The private start, watched: what it released, what it chose by that, and what it made of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import start


@contextmanager
def watching_start(seen: dict[str, Any]) -> Iterator[None]:
    """Note into ``seen``, while a training starts, what ``Watched.start`` says."""

    def choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
        def watching(popularity: np.ndarray, *rest: Any, **settings: Any) -> Any:
            comparison = choose(popularity, *rest, **settings)
            seen.setdefault("choices", []).append((rest, settings, comparison))
            return comparison

        return watching

    def comparing(make: Callable[..., CohortSum]) -> Callable[..., CohortSum]:
        def watching(store: Any, comparison: Any) -> CohortSum:
            seen["comparison"] = comparison
            return make(store, comparison)

        return watching

    def making(make: Callable[..., Any]) -> Callable[..., Any]:
        def watching(popularity: Any, moments: Any, *rest: Any, **more: Any) -> Any:
            result = make(popularity, moments, *rest, **more)
            seen.update(popularity=popularity, moments=moments, made_of=(rest, more), vectors=result.vectors)
            return result

        return watching

    with ExitStack() as stack:
        stack.enter_context(wrapped(start, "compare", choosing))
        stack.enter_context(wrapped(start, "second_moment_sum", comparing))
        stack.enter_context(wrapped(start, "first_item_vectors", making))
        yield
