"""What may leave a device, by name. The one place that says so.

A weight on neither list is an error at start-up, so that a new layer cannot leave by accident.
"""

from collections.abc import Iterable

from fedrecall.protocol.errors import FedrecallError

SHARED_PREFIXES = ("item.", "transformer.")
"""Weights that an update may hold, once clipped and under a plan."""

PRIVATE_PREFIXES = ("user.",)
"""Weights that never leave their device."""

WITHIN_CLIP = "within_clip"
"""Whether a contribution was within the clip, as 1/2 or -1/2: beside the weights of a round whose clip adapts."""

SCALE = "scale"
"""The number by which the bytes of a statistic are multiplied."""

STATISTICS = ("popularity", "second_moments", SCALE, WITHIN_CLIP)
"""Declared statistics that an update may hold."""


def shared_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the weights ``names`` that may be shared; raises FedrecallError for one on neither list."""
    shared = []
    for name in names:
        if name.startswith(SHARED_PREFIXES):
            shared.append(name)
        elif not name.startswith(PRIVATE_PREFIXES):
            raise FedrecallError(
                f"weight {name!r} is on neither list of protocol/allow_list.py: "
                f"shared {SHARED_PREFIXES}, private {PRIVATE_PREFIXES}"
            )
    return tuple(shared)
