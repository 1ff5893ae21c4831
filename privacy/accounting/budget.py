"""A user's privacy budget for one device, and what it adds up to when it renews."""

import math
from dataclasses import dataclass

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon, gaussian_mu
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Renewal, Unit


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a user allows one device to spend in a window.

    Attributes:
        epsilon: at ``delta``, for one ``unit``; ``None`` sets no limit.
        delta: the delta of every epsilon that the ledger states.
        renews: how often the spending starts again, by the UTC calendar; ``after_windows`` says what that adds up to.
        unit: what the budget protects. Plans of another unit give it no bound; epsilons of two units never add.
    """

    epsilon: float | None
    delta: float
    renews: Renewal = "never"
    unit: Unit = "user"

    def __post_init__(self) -> None:
        """Refuse what is no budget."""
        if not 0.0 < self.delta < 1.0:
            raise PlanError(f"delta is {self.delta}: choose it between 0 and 1, such as 1e-6")
        if self.epsilon is not None and not 0.0 < self.epsilon < math.inf:
            raise PlanError(f"epsilon is {self.epsilon}: choose it finite and above 0, or None for no limit")
        if self.renews not in ("never", "day", "week", "month"):
            raise PlanError(f"renews is {self.renews!r}: choose one of never, day, week, month")
        if self.unit not in ("user", "interaction"):
            raise PlanError(f"unit is {self.unit!r}: choose one of user, interaction")

    @property
    def mu_squared(self) -> float:
        """The sum of mu^2 that (epsilon, delta) allows; infinite without a limit."""
        return math.inf if self.epsilon is None else gaussian_mu(self.epsilon, self.delta) ** 2


def after_windows(budget: Budget, windows: int) -> float | None:
    """Return the epsilon, at the budget's delta, of ``windows`` windows that are each spent in full.

    This is what a budget that renews promises over time: it grows about as the square root while small. A span that
    begins amid a window touches one more. Holds while the budget is not changed; ``None`` without a limit.

    Raises:
        PlanError: fewer than one window, or more than one of a budget that never renews.
    """
    if windows < 1 or (windows > 1 and budget.renews == "never"):
        raise PlanError(f"windows is {windows}: choose at least 1, and 1 alone where the budget never renews")
    return epsilon_of(windows * budget.mu_squared, budget.delta)


def epsilon_of(mu_squared: float, delta: float) -> float | None:
    """Return the epsilon at ``delta`` of Gaussian releases whose mu^2 sum to this; ``None`` for an infinite sum."""
    return gaussian_epsilon(math.sqrt(mu_squared), delta) if mu_squared < math.inf else None
