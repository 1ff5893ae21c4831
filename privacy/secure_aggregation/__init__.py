"""Secure aggregation: a server opens the sum of what devices sent, and nothing else (SecAgg+, Bell and others 2020).

Three layers that do not know each other: primitives (``agreement``, ``masks``, ``sharing``, ``neighbours``); the
scheme, pure functions over records (``records``, ``device``, ``server``); its carriage, which is elsewhere. What the
scheme promises, against whom, is in ``fedrecall.privacy.secure_aggregation.records``.
"""
