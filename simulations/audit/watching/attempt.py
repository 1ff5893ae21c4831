"""What one attempt to break a promise came to: the row of every audit, of people's report and of machines'."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from fedrecall.protocol.errors import UsageError

Verdict = Literal["held", "broken", "not tested", "shows"]
Metric = Literal["auc", "tpr@1%", "epsilon", "hits", "bound"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt and its result.

    Attributes:
        name: unique within an audit, such as ``white box: rounds``.
        adversary: who could make it: ``released-model``, ``server``, ``network``, ``device-thief``, or ``auditor`` for
            a check that only somebody with the run's seed and files can make.
        unit: ``user``, ``interaction``, or ``-`` where it concerns no unit.
        what: one sentence for a regulator's engineer: what was done, and what it would mean to succeed.
        score: the result in ``metric``; ``None`` where nothing was measured.
        metric: ``auc``; ``tpr@1%``; ``epsilon``, a lower bound of it; ``hits``, things found that must not be there;
            ``bound``, a p-value or a ratio that a claim bounds, said in ``what``.
        chance: the score of somebody who learns nothing; ``None`` where there is no such score.
        low: lower end of the confidence interval of ``score``; ``None`` without one.
        high: upper end.
        confidence: of the interval, or of the verdict ``broken``; ``None`` where there is no chance in it.
        claimed_epsilon: what the plan claims against this adversary; ``None`` without a claim.
        empirical_epsilon: the lower bound that was found; ``None`` where the attempt gives none.
        power: which leak it would have seen, in words and numbers.
        verdict: ``held`` and ``broken`` for a claim; ``shows`` for an attack where none is made, say on raw updates;
            ``not tested`` with the reason in ``what``.
        trials: canaries, scores or things looked at.
        seconds: it took.
        detail: figures for machines; strict JSON.
    """

    name: str
    adversary: str
    unit: str
    what: str
    score: float | None
    metric: Metric
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    claimed_epsilon: float | None = None
    empirical_epsilon: float | None = None
    power: str
    verdict: Verdict
    trials: int
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a verdict or a metric that is none, and numbers that strict JSON cannot hold."""
        for name, value, kind in (("verdict", self.verdict, Verdict), ("metric", self.metric, Metric)):
            if value not in get_args(kind):
                raise UsageError(f"{name} of {self.name!r} is {value!r}: choose one of {', '.join(get_args(kind))}")
        for name in ("score", "chance", "low", "high", "confidence", "claimed_epsilon", "empirical_epsilon", "seconds"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{name} of {self.name!r} is {value}: say None for what is unbounded or unknown")

    def to_dict(self) -> dict[str, Any]:
        """Return the attempt as plain JSON data."""
        return asdict(self)
