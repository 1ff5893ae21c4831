"""PLD, PRV (Opacus), RDP and the closed form side by side on 50 random plans, as a Markdown table.

PRV is given with its own bounds: (lower, upper) around its estimate.

    python benchmarks/accountants.py
"""

import argparse
import sys
from pathlib import Path

from fedrecall.protocol.plan import Plan

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "privacy" / "accounting"))
from random_plans import Side, measure, random_plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=50)
    sides = []
    print("| plan: unit, trust, delta; (rate, sigma, steps, neighbours) | PLD | PRV | RDP | closed form |")
    print("|---|---|---|---|---|")
    for plan in random_plans(parser.parse_args().plans):
        side = measure(plan)
        sides.append(side)
        print(f"| {described(plan)} | {side.pld:.4f} | {interval(side)} | {spelled(side.rdp)} | ", end="")
        print(f"{spelled(side.closed_form)} |", flush=True)
    answered = [s for s in sides if s.prv is not None]
    exact = [s for s in sides if s.closed_form is not None]
    print()
    print(f"PRV answered {len(answered)} of {len(sides)} plans.")
    print(f"Worst |PLD - PRV|: {max(abs(s.pld - s.prv[1]) for s in answered if s.prv):.2e}")
    print(f"Least and most RDP - PLD: {least_and_most([s.rdp - s.pld for s in sides if s.rdp is not None])}")
    print(f"Least and most PLD - closed form: {least_and_most([s.pld - (s.closed_form or 0.0) for s in exact])}")


def described(plan: Plan) -> str:
    parts = [
        f"({m.sample_rate:.3g}, {m.noise_multiplier:.3g}, {m.steps}, {m.adjacency.replace('_', '/')})"
        for m in plan.mechanisms
    ]
    return f"{plan.unit}, {plan.trust}, {plan.delta:g}; {' '.join(parts)}"


def interval(side: Side) -> str:
    return side.why if side.prv is None else f"{side.prv[1]:.4f} ({side.prv[0]:.3f}, {side.prv[2]:.3f})"


def spelled(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def least_and_most(values: list[float]) -> str:
    return f"{min(values):.2e}, {max(values):.2e}"


if __name__ == "__main__":
    main()
