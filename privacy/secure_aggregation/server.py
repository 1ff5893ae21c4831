"""The server's side of a round, as pure functions: what to show whom, and the sum that the opened shares give."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from fedrecall.privacy.secure_aggregation.agreement import agreed_key, derived_key, public_key
from fedrecall.privacy.secure_aggregation.masks import Residues, add_mask, cut_to, dtype_of
from fedrecall.privacy.secure_aggregation.records import (
    Advertisement,
    Board,
    Dealt,
    Masked,
    Opened,
    Setting,
    Verify,
    digest_of,
    info_of,
    pair_mask_info,
)
from fedrecall.privacy.secure_aggregation.sharing import secret_of
from fedrecall.protocol.errors import UpdateError


class Round:
    """A round as the server keeps it: who advertised, and who is next to whom.

    Args:
        setting: of the round.
        advertisements: those that came; one a device, signed by it, or it is left out and named in ``refused``.
        verify: whether a device signed a message.

    Raises:
        UpdateError: fewer are left than the minimum.
    """

    def __init__(self, setting: Setting, advertisements: Iterable[Advertisement], verify: Verify) -> None:
        self.setting = setting
        self.refused: list[str] = []
        said: dict[int, Advertisement] = {}
        twice: set[int] = set()
        for one in advertisements:
            try:
                one.check(setting, verify)
            except UpdateError as error:
                self.refused.append(str(error))
                continue
            if said.setdefault(one.number, one) != one:
                twice.add(one.number)
        # Of a number that advertises twice nobody knows which one the others would share with.
        self.refused += [f"device {number} advertised twice: left out" for number in sorted(twice)]
        self.advertisements = {number: one for number, one in sorted(said.items()) if number not in twice}
        if len(self.advertisements) < setting.minimum:
            raise UpdateError(f"{len(self.advertisements)} devices take part, and {setting.minimum} must: void")
        digests = {number: digest_of(one, setting) for number, one in self.advertisements.items()}
        board = Board(digests=digests, neighbours={})
        self.digests, self.root, self.graph = digests, board.root(setting), board.graph(setting)

    def board(self, number: int) -> Board:
        """Return what a device is shown of the others."""
        return Board(digests=self.digests, neighbours={n: self.advertisements[n] for n in self.graph[number]})


def delivered(dealt: Sequence[Dealt], number: int) -> dict[int, bytes]:
    """Return what was sealed for a device, by whom."""
    return {one.number: one.sealed[number] for one in dealt if number in one.sealed}


def masked_sum(round: Round, masked: Iterable[Masked]) -> tuple[tuple[int, ...], Residues]:
    """Return who sent masked numbers, and their sum, which is as random as each; they may come one by one.

    Raises:
        UpdateError: a device masked twice, is none of the round, or its numbers are not as set.
    """
    survivors: dict[int, None] = {}
    total = np.zeros(round.setting.numbers, dtype=dtype_of(round.setting.bits))
    for one in masked:
        if one.number in survivors or one.number not in round.advertisements:
            raise UpdateError(f"device {one.number} masked twice, or is none of the round: refused")
        if one.values.dtype != total.dtype or one.values.shape != total.shape:
            raise UpdateError(f"the numbers of device {one.number} are not as set: refused")
        total += one.values
        survivors[one.number] = None
    return tuple(survivors), total


def opened_sum(
    round: Round, dealt: Iterable[int], survivors: Sequence[int], total: Residues, opened: Iterable[Opened]
) -> Residues:
    """Return the sum of what the survivors masked, modulo 2^bits.

    Args:
        round: that it is of.
        dealt: devices whose shares were delivered, so that masks between them and others stand in sums.
        survivors: those whose masked numbers are in ``total``, as they were told to devices.
        total: from ``masked_sum``.
        opened: shares that survivors gave.

    Raises:
        UpdateError: too few survive, or a secret has too few shares, or none that fit what was advertised.
    """
    setting, total = round.setting, total.copy()
    if len(survivors) < setting.minimum:
        raise UpdateError(f"{len(survivors)} devices survive, and {setting.minimum} must: void")
    gone, shares = sorted(set(dealt) - set(survivors)), list(opened)
    for number in survivors:
        committed = round.advertisements[number].committed
        seed = _secret(
            {one.number: one.seeds[number] for one in shares if number in one.seeds},
            setting.threshold,
            partial(_is_seed, committed),
        )
        add_mask(total, derived_key(seed, info_of(b"own mask", round.root, number)), -1)
    alive = set(survivors)
    for number in gone:
        public = round.advertisements[number].masking
        private = _secret(
            {one.number: one.keys[number] for one in shares if number in one.keys},
            setting.threshold,
            partial(_is_key, public),
        )
        for other in round.graph[number]:
            if other in alive:
                info = pair_mask_info(round.root, number, other)
                key = agreed_key(private, round.advertisements[other].masking, info)
                add_mask(total, key, -1 if other < number else 1)
    return cut_to(total, setting.bits)


def _is_seed(committed: bytes, secret: bytes) -> bool:
    return hashlib.sha256(secret).digest() == committed


def _is_key(public: bytes, secret: bytes) -> bool:
    return public_key(secret) == public


def _secret(shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool]) -> bytes:
    """Return the secret that a threshold of ``shares`` gives and that ``fits``; some may be false, not many."""
    if len(shares) < threshold:
        raise UpdateError(f"a secret has {len(shares)} shares, below the threshold of {threshold}: nothing is opened")
    points = sorted(shares)
    for begin in range(len(points)):
        chosen = (points + points)[begin : begin + threshold]
        try:
            secret = secret_of({point + 1: shares[point] for point in chosen})
        except UpdateError:
            continue
        if fits(secret):
            return secret
    raise UpdateError("shares do not give the secret that was advertised: nothing is opened")
