"""Every check of a world, by the name that reports and the seeded-bug suite know it by."""

import time

from fedrecall.protocol.errors import FedrecallError
from fedrecall.simulations.audit.checks import adaptive_clip, conformance, released, white_box
from fedrecall.simulations.audit.checks import noise as noise_checks
from fedrecall.simulations.audit.checks import sampler as sampler_check
from fedrecall.simulations.audit.checks import sensitivity as sensitivity_check
from fedrecall.simulations.audit.checks.start_sensitivity import start_sensitivity
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Check, Trial

CHECKS: dict[str, Check] = {
    "noise on zero signal": noise_checks.zero_signal,
    "noise in the run": noise_checks.in_the_run,
    "noise all together": noise_checks.all_together,
    "noise at length": noise_checks.noise_at_length,
    "noise of deployments": noise_checks.of_deployments,
    "white box: rounds": white_box.rounds,
    "white box: start": white_box.start,
    "sampler": sampler_check.sampler,
    "sensitivity": sensitivity_check.sensitivity,
    "sensitivity of releases": sensitivity_check.sensitivity_of_releases,
    "sensitivity of the start": start_sensitivity,
    "adaptive clip": adaptive_clip.adaptive_clip,
    "sensitivity of the count": adaptive_clip.counts,
    "released: rounds": released.rounds,
    "released: files": released.files,
    "stateless": sensitivity_check.stateless,
    "wire: names": conformance.names_on_the_wire,
    "ledger": conformance.charged_first,
    "void rounds": conformance.void_rounds,
    "start: from releases": conformance.start_from_releases,
    "claims": conformance.epsilons,
}


def check_world(trial: Trial) -> list[Attempt]:
    """Run every check of ``CHECKS`` that applies; one that the product itself stops is reported as not tested."""
    found: list[Attempt] = []
    for name, check in CHECKS.items():
        found += attempt_check(trial, name, check)
    return found


def attempt_check(trial: Trial, name: str, check: Check) -> list[Attempt]:
    """Run one check; where the product refuses to do what it needs, say so."""
    began = time.perf_counter()
    try:
        return check(trial)
    except FedrecallError as error:
        return [not_tested(trial, name, began, f"the product refused: {error}")]


def not_tested(trial: Trial, name: str, began: float, reason: str) -> Attempt:
    """Return the row of a check that could not be made."""
    return trial.attempt(
        name,
        began,
        adversary="auditor",
        what=f"Not tested: {reason}.",
        score=None,
        metric="hits",
        power="none",
        verdict="not tested",
        trials=0,
    )
