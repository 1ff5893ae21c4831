"""Reports of finished runs: one HTML page for people, and the comparison of several runs."""

from fedrecall.simulations.report.compare import compare_runs, read_run
from fedrecall.simulations.report.page import write_report

__all__ = ["compare_runs", "read_run", "write_report"]
