"""Evaluation: exact masked ranking, metrics and paired comparisons."""
