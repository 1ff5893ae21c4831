"""The clip that follows a private quantile of the devices' norms.

Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1.

Each device adds one number to its update: +1/2 when its contribution was within the clip, -1/2 otherwise. Its sum is
released with the update's, in one Gaussian release (``AdaptiveClip`` in ``fedrecall.protocol.plan`` says how the noise
is shared out), and moves the next round's clip. The next clip is a function of releases alone.
"""

import math
from collections.abc import Mapping

import numpy as np

from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import AdaptiveClip, Mechanism

_WIDEST = 1e6
"""The clip stays within this factor of the first one, so that no run of noise drives it to 0 or infinity."""


def within_clip(norm: float, clip_norm: float) -> np.ndarray:
    """Return what a device of this ``norm`` adds to the count: 1/2 or -1/2, as a 0-d float32 array."""
    return np.asarray(0.5 if norm <= clip_norm else -0.5, dtype=np.float32)


def noise_adaptively(
    sums: Mapping[str, np.ndarray], mechanism: Mechanism, clip_norm: float, noise: NoiseSource
) -> dict[str, np.ndarray]:
    """Return ``sums`` and the count among them with noise, as one release of ``mechanism.noise_multiplier``.

    Sensitivities: ``clip_norm``, this round's, of the sums together; 1/2 of the count.
    """
    count = Mechanism(name="count", noise_multiplier=mechanism.count_noise_multiplier, clip_norm=0.5)
    rest = Mechanism(name=mechanism.name, noise_multiplier=mechanism.sum_noise_multiplier, clip_norm=clip_norm)
    others = {name: value for name, value in sums.items() if name != WITHIN_CLIP}
    return {
        **gaussian_sum(others, rest, noise),
        **gaussian_sum({WITHIN_CLIP: sums[WITHIN_CLIP]}, count, noise),
    }


def next_clip(clip_norm: float, first: float, count: float, expected_cohort: float, settings: AdaptiveClip) -> float:
    """Return the next round's clip from the released ``count``; ``first`` is the plan's ``clip_norm``."""
    share = min(1.0, max(0.0, count / expected_cohort + 0.5))
    moved = clip_norm * math.exp(-settings.learning_rate * (share - settings.quantile))
    return min(first * _WIDEST, max(first / _WIDEST, moved))
