"""Whether a device's events were in the training: LiRA and RMIA on the released model, from shadow models.

Some models are targets; the others, whose coins the adversary knows, show what a model looks like with and without a
device. Target models are judged by shadows alone, never by each other: so every coin of a target is fair given all
that its guess is made from, as the one-run bound wants.
"""

import numpy as np
from jaxtyping import Float64
from scipy.special import logsumexp

from fedrecall.privacy.audit import AuditResult, one_run_bound
from fedrecall.simulations.audit.attacks.models.shadow_models import Shadows
from fedrecall.simulations.audit.attacks.scores import ALPHA, Claim, Guesses

TARGETS = 0.25
"""Share of the models that are attacked."""

_GUESSED = (0.01, 0.05, 0.25)
"""Shares of the coins that are guessed to be in, and as many to be out: fixed beforehand, all paid for."""


def attack_devices(shadows: Shadows) -> dict[str, Guesses]:
    """Return the guesses of LiRA and of RMIA over all target models; a cluster is a device.

    LiRA (Carlini and others 2022, section V): likelihood ratio of two normal distributions of the signal, fitted for
    each device with it in and out, with one variance for all devices, as they advise for few shadow models.

    RMIA (Zarifzadeh, Liu and Shokri 2024, equations 2 to 4, gamma 1): how many other devices' likelihood rose less,
    against its mean over the shadow models, than this one's.
    """
    targets = max(1, round(TARGETS * len(shadows.signals)))
    known, of_known = shadows.signals[targets:], shadows.included[targets:]
    seen = shadows.signals[:targets]
    both = of_known.any(axis=0) & (~of_known).any(axis=0)
    inside, outside = (_fit(known, of_known == wanted) for wanted in (True, False))
    lira = _log_normal(seen, *inside) - _log_normal(seen, *outside)
    rise = seen - (logsumexp(known, axis=0) - np.log(len(known)))
    order = np.sort(rise[:, both], axis=1)
    rmia = np.stack([np.searchsorted(o, r, side="right") / len(o) for o, r in zip(order, rise, strict=True)])
    truth = shadows.included[:targets][:, both].ravel()
    clusters = np.tile(np.flatnonzero(both), targets)
    return {
        name: Guesses(scores=np.asarray(scores[:, both].ravel(), dtype=np.float64), truth=truth, clusters=clusters)
        for name, scores in (("LiRA", lira), ("RMIA", rmia))
    }


def device_bound(guesses: Guesses, claim: Claim) -> AuditResult:
    """Return the lower bound of epsilon from the coins of all targets.

    Each coin touches one target model, so that one more release of the plan is made for each: together they are as
    private in a coin as one of them.
    """
    rules = [(max(1, int(share * len(guesses.truth))),) * 2 for share in _GUESSED]
    return one_run_bound(
        guesses.scores, guesses.truth, rules=rules, delta=claim.delta, relation=claim.relation, alpha=ALPHA
    )


def _fit(
    signals: Float64[np.ndarray, "models devices"], use: np.ndarray
) -> tuple[Float64[np.ndarray, " devices"], float]:
    """Return each device's mean over the models where ``use`` holds, and the common standard deviation."""
    count = use.sum(axis=0)
    mean = np.where(use, signals, 0.0).sum(axis=0) / np.maximum(count, 1)
    left = np.where(use, signals - mean, 0.0)
    freedom = int(np.maximum(count - 1, 0).sum())
    return mean, float(np.sqrt((left**2).sum() / max(freedom, 1)) + 1e-12)


def _log_normal(
    values: Float64[np.ndarray, "targets devices"], mean: Float64[np.ndarray, " devices"], spread: float
) -> Float64[np.ndarray, "targets devices"]:
    return np.asarray(-0.5 * ((values - mean) / spread) ** 2 - np.log(spread))
