"""``python -m fedrecall.simulations.audit``: the seeded-bug suite, what ``make audit`` runs."""

import argparse
import os
import sys

from fedrecall.simulations.audit.planting.suite import CLEAN, as_text, passed, run_suite


def main() -> int:
    """Print the table of bugs and the summary; 1 when a bug got through or a clean run raised an alarm."""
    parser = argparse.ArgumentParser(prog="python -m fedrecall.simulations.audit", description=__doc__)
    parser.add_argument("--clean", type=int, default=CLEAN, help=f"clean runs, {CLEAN} by default")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    arguments = parser.parse_args()

    def tell(stage: str, done: int, total: int) -> None:
        print(f"{stage}: {done}/{total}", file=sys.stderr, flush=True)

    caught, sound = run_suite(clean=arguments.clean, workers=arguments.workers, progress=tell)
    print(as_text(caught, sound))
    return 0 if passed(caught, sound) else 1


if __name__ == "__main__":
    sys.exit(main())
