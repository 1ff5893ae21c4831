"""How often people take an item again, and what to say of it."""

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.data.splits.parts import is_new

WORTH_SAYING = 0.1


def share_of_repeats(events: EventStore) -> float:
    """Return the share of events whose item their device had before, 0 where there are no events."""
    return float(1.0 - is_new(events).mean()) if events.n_events else 0.0


def remark_of(share: float) -> str | None:
    """Say what becomes of repeats where they are at least a tenth of all events; else ``None``."""
    if share < WORTH_SAYING:
        return None
    return (
        f"{share:.0%} of the events are of items that their user had before: a run never recommends such items nor"
        " looks for them, unless it has -c data.repeats=recommend"
    )
