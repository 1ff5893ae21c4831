"""Attacks on federated recommendation: what each adversary makes of what it sees, with and without each defence."""
