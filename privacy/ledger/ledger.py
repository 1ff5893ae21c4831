"""The server's ledger: what was spent against one plan, on disk before anything is released (rule 8).

Its first line holds the plan, every further one a charge: mechanism, round, the key that names the noise and,
under a plan that ``renews``, the calendar window. It holds events of the plan, never data. What makes it
append-only, and which rollback it can show, is said in ``fedrecall.privacy.ledger.chain``.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedrecall.privacy.accounting.windows import next_window, utc_day, window_start
from fedrecall.privacy.ledger.chain import Chain, Head
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, PlanError
from fedrecall.protocol.plan import Plan

__all__ = ["Head", "Ledger"]


class Ledger:
    """What was spent against one plan. Made by ``create``, ``open``, ``resume`` or ``read``."""

    def __init__(self, chain: Chain, plan: Plan) -> None:
        self._chain = chain
        self._plan = plan
        self._spent: Counter[str] = Counter()
        self._spent_by_window: Counter[tuple[str, str]] = Counter()
        self._keys: set[tuple[str, int, str]] = set()
        self._rounds: set[tuple[str, int]] = set()
        self._window = ""
        for number, entry in enumerate(chain.entries[1:], start=2):
            try:
                self._count(entry)
            except (KeyError, TypeError, PlanError) as error:
                raise CorruptArtefact(f"{chain.path} line {number} is no charge of its plan: restore it") from error

    @classmethod
    def create(cls, path: str | Path, plan: Plan) -> "Ledger":
        """Start an empty ledger in a new file; UsageError when ``path`` or its head exists already."""
        return cls(Chain.create(path, _first(plan)), plan)

    @classmethod
    def open(cls, path: str | Path, plan: Plan, *, at_least: Head | None = None) -> "Ledger":
        """Replay the ledger at ``path`` and repair what a crash left.

        Raises:
            CorruptArtefact: a file is missing, truncated or edited, the chain is broken, or the ledger does
                not continue ``at_least``, a head that was kept elsewhere.
            PlanError: it is the ledger of another plan.
        """
        return cls._of(Chain.open(path, at_least=at_least), plan)

    @classmethod
    def resume(cls, path: str | Path, plan: Plan) -> "Ledger":
        """Open the ledger at ``path``, or start one where a kill came before its first line was whole.

        For who knows nothing of earlier charges: with a head kept elsewhere, ``open`` it, so that a ledger that is
        gone is missed. Raises as ``open`` does.
        """
        return cls._of(Chain.resume(path, _first(plan)), plan)

    @classmethod
    def read(cls, path: str | Path) -> "Ledger":
        """Replay the ledger at ``path`` against the plan in its first line, and write nothing.

        Raises:
            CorruptArtefact: as ``open``, or the first line holds no sound plan.
        """
        chain = Chain.read(path)
        try:
            plan = Plan.from_dict(chain.entries[0]["plan"])
        except (KeyError, PlanError) as error:
            raise CorruptArtefact(f"{path} does not begin with a privacy plan: name a server's ledger") from error
        if chain.entries[0].get("digest") != plan.digest():
            raise CorruptArtefact(f"{path} begins with a plan that its digest does not name: restore it")
        return cls(chain, plan)

    @classmethod
    def _of(cls, chain: Chain, plan: Plan) -> "Ledger":
        if chain.entries[0].get("digest") != plan.digest():
            raise PlanError(f"{chain.path} is the ledger of another plan: use that plan, or start a new ledger")
        return cls(chain, plan)

    def charge(self, mechanism: str, round: int, key: str, now: datetime | None = None) -> bool:
        """Record one release of ``mechanism`` durably, before it is made.

        Args:
            mechanism: its name in the plan.
            round: which of its releases, from 0.
            key: names the noise: a digest of seed, plan and round in a simulation, else a nonce.
            now: the time, with its zone, for a plan that ``renews``. Windows never run back: a time before the
                latest window charged counts as that window.

        Returns:
            True when charged; False in a simulation that charged the same (mechanism, round, key) before, so
            that a replay with identical noise is charged once. Outside a simulation a retry is charged again.

        Raises:
            PlanError: the plan has no such mechanism, ``round`` is negative, or it renews and ``now`` is missing.
            BudgetExhausted: the plan's releases of it, in this window where it renews, are spent.
            FedrecallError: disk failed, or another process charged meanwhile. Release nothing; open it again.
        """
        limit = self._plan.mechanism(mechanism).steps
        if round < 0:
            raise PlanError(f"round is {round}: choose it at least 0")
        if self._plan.simulated and (mechanism, round, key) in self._keys:
            return False
        window = self._window_of(now)
        if self._spent_by_window[mechanism, window] >= limit:
            raise BudgetExhausted(f"{mechanism} has spent all of its {limit} releases{self._until(window)}")
        entry: dict[str, Any] = {"mechanism": mechanism, "round": int(round), "key": key}
        if window:
            entry["window"] = window
        self._chain.append(entry)
        self._count(entry)
        return True

    def charged(self, mechanism: str, round: int) -> bool:
        """Whether this release was ever charged, under whatever key."""
        return (mechanism, round) in self._rounds

    def spent(self) -> dict[str, int]:
        """Return the number of charged releases of every mechanism of the plan, over all windows."""
        return {m.name: self._spent[m.name] for m in self._plan.mechanisms}

    def spent_in_window(self) -> dict[str, int]:
        """Return those of the latest window charged; the same as ``spent`` where the plan never renews."""
        return {m.name: self._spent_by_window[m.name, self._window] for m in self._plan.mechanisms}

    def spent_plan(self) -> Plan:
        """Return the plan with its steps replaced by those spent: account it for the epsilon spent so far.

        Of a plan that renews, the steps of all windows together, in one that does not.
        """
        mechanisms = tuple(replace(m, steps=self._spent[m.name]) for m in self._plan.mechanisms)
        return replace(self._plan, mechanisms=mechanisms, renews="never")

    def head(self) -> Head:
        """Return where the ledger stands, for keeping elsewhere."""
        return self._chain.head()

    @property
    def plan(self) -> Plan:
        """The plan that is charged."""
        return self._plan

    @property
    def window(self) -> str | None:
        """First day of the latest window charged, in ISO format; ``None`` before, or where the plan never renews."""
        return self._window or None

    def holds(self, sha256: str) -> bool:
        """Whether a line has this hash: whether the ledger continues a head of which only the hash was kept."""
        return self._chain.holds(sha256)

    def _window_of(self, now: datetime | None) -> str:
        """Return the first day of the window to charge, in ISO format; empty where the plan never renews."""
        if self._plan.renews == "never":
            return ""
        if now is None:
            raise PlanError(f"now is missing: the plan renews every {self._plan.renews}, so say what time it is")
        return max(self._window, window_start(utc_day(now), self._plan.renews).isoformat())

    def _until(self, window: str) -> str:
        if not window:
            return ": a new plan must allow more"
        following = next_window(datetime.fromisoformat(window).date(), self._plan.renews)
        return f" of the {self._plan.renews} from {window}: wait until {following} UTC"

    def _count(self, entry: dict[str, Any]) -> None:
        charged, window = self._plan.mechanism(entry["mechanism"]), ""
        if self._plan.renews != "never":
            window = entry["window"]
            self._window = max(self._window, window)
        self._spent[charged.name] += 1
        self._spent_by_window[charged.name, window] += 1
        self._keys.add((charged.name, entry["round"], entry["key"]))
        self._rounds.add((charged.name, entry["round"]))
        if self._spent_by_window[charged.name, window] > charged.steps:
            raise PlanError(f"{charged.name} is charged more often than {charged.steps} times")


def _first(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.to_dict(), "digest": plan.digest()}
