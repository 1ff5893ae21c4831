"""Evaluation: exact masked ranking, metrics, paired comparisons and the leak probe."""
