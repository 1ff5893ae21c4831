"""Reports of finished runs: one HTML page for people, and the comparison of several runs."""
