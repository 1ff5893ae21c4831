"""How small delta has to be: below one over the number of people, or the promise allows giving whole ones away.

With delta at 1 / n a mechanism that publishes one person of n picked at random would satisfy it (Dwork and Roth 2014,
section 2.3). It is the delta of the plan, and of every epsilon that is stated with it.
"""

import math

_USUAL = 1e-5
_SUSPICIOUS = 1e-3


def delta_for(devices: int) -> float:
    """Return the delta that a plan of so many devices gets: 1e-5, or the power of ten below 1 / devices if smaller."""
    below = 10.0 ** (math.ceil(-math.log10(devices)) - 1)
    while below * devices >= 1.0:
        below /= 10.0
    return min(_USUAL, below)


def delta_warning(delta: float, devices: int | None) -> str:
    """Return why ``delta`` is too large for ``devices`` (``None`` where they are not known), or nothing."""
    if devices is None:
        if delta < _SUSPICIOUS:
            return ""
        few = f"{1 / delta:.4g}"
        return f"delta {delta:g} promises something to fewer than {few} devices alone: choose it below 1 / devices"
    if delta * devices < 1.0:
        return ""
    return (
        f"delta {delta:g} is not below 1 / devices, {1 / devices:.3g}: it would allow {delta * devices:.4g} of "
        f"{devices:,} histories to be given away whole; {delta_for(devices):g} would do"
    )
