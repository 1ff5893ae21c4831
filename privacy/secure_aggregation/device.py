"""A device's side of a round, as pure functions: each takes what the device remembers, and returns it with a message.

Whoever carries messages keeps what is remembered before it sends anything. A step that is repeated with the same input
gives the same message (but for a signature, where signing is random), and with another one is refused
(docs/privacy.md, rule 18). What is remembered is never copied or restored: a device that lost it has dropped out.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedrecall.privacy.secure_aggregation.agreement import agreed_key, derived_key, public_key, sealed, unsealed
from fedrecall.privacy.secure_aggregation.masks import Residues, add_mask, cut_to, dtype_of, stream_of
from fedrecall.privacy.secure_aggregation.records import (
    Advertisement,
    Board,
    Dealt,
    Masked,
    Opened,
    Setting,
    Sign,
    Verify,
    Voucher,
    digest_of,
    info_of,
    pair_mask_info,
    survivors_said,
)
from fedrecall.privacy.secure_aggregation.sharing import SHARE_BYTES, randomness_for, shares_of
from fedrecall.protocol.errors import UpdateError

_ORDER = ("deal", "mask", "vouch", "open")


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What a device knows of its round: secret, all of it.

    Attributes:
        setting: of the round.
        said: its own advertisement.
        sealing: private key.
        masking: private key.
        seed: of its own mask.
        root: of the board, once it was seen.
        cohort: numbers of all on the board.
        neighbours: their advertisements.
        shares: of each neighbour that dealt, a share of its seed and one of its masking key.
        survivors: the list that the device vouched for.
        taken: SHA-256 of the input of each step that was taken.
    """

    setting: Setting
    said: Advertisement
    sealing: bytes
    masking: bytes
    seed: bytes
    root: bytes = b""
    cohort: frozenset[int] = frozenset()
    neighbours: Mapping[int, Advertisement] = field(default_factory=dict)
    shares: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)
    survivors: tuple[int, ...] = ()
    taken: Mapping[str, bytes] = field(default_factory=dict)

    def taking(self, step: str, given: bytes) -> "Remembered":
        """Note a step with its input; raises UpdateError where it had another input before, or comes too early."""
        if any(before not in self.taken for before in _ORDER[: _ORDER.index(step)]):
            raise UpdateError(f"the step {step!r} comes too early: refused")
        if self.taken.get(step, given) != given:
            raise UpdateError(f"the step {step!r} was taken with another input: refused")
        return replace(self, taken={**self.taken, step: given})


def advertise(
    setting: Setting, number: int, sign: Sign, random: Callable[[int], bytes] = secrets.token_bytes
) -> tuple[Remembered, Advertisement]:
    """Begin a round: draw keys for it alone, and tell their public halves.

    Args:
        setting: of the round, from the device's own plan and the ask that it was shown.
        number: of the device.
        sign: by its enrolled key.
        random: returns so many random bytes.
    """
    sealing, masking, seed = random(32), random(32), random(32)
    said = Advertisement(
        number=number,
        sealing=public_key(sealing),
        masking=public_key(masking),
        committed=hashlib.sha256(seed).digest(),
        signature=b"",
    )
    said = replace(said, signature=sign(said.said(setting)))
    return Remembered(setting=setting, said=said, sealing=sealing, masking=masking, seed=seed), said


def deal(mine: Remembered, board: Board, verify: Verify) -> tuple[Remembered, Dealt]:
    """Deal shares of both secrets to the neighbours that the board gives.

    Raises:
        UpdateError: the board lacks the device's own advertisement or more of the cohort than the minimum allows; a
            neighbour's is missing, is not the one listed, or is not signed by it; or another board was seen before.
    """
    setting, number = mine.setting, mine.said.number
    if len(board.digests) < setting.minimum:
        raise UpdateError(f"{len(board.digests)} devices take part, and {setting.minimum} must: refused")
    if board.digests.get(number) != digest_of(mine.said, setting):
        raise UpdateError("the board does not list this device as it advertised: refused")
    root = board.root(setting)
    mine = mine.taking("deal", root)
    neighbours = {}
    for other in board.graph(setting)[number]:
        said = board.neighbours.get(other)
        if said is None or said.number != other or digest_of(said, setting) != board.digests[other]:
            raise UpdateError(f"the board does not show the neighbour {other} as it lists it: refused")
        said.check(setting, verify)
        neighbours[other] = said
    if len(neighbours) < setting.threshold:
        raise UpdateError(f"{len(neighbours)} neighbours are below the threshold of {setting.threshold}: refused")
    points, size = [other + 1 for other in neighbours], randomness_for(setting.threshold)
    drawn = stream_of(derived_key(mine.seed + mine.masking, info_of(b"polynomials", root, number)), 2 * size)
    dealt = zip(
        shares_of(mine.seed, points, setting.threshold, drawn[:size]),
        shares_of(mine.masking, points, setting.threshold, drawn[size:]),
        strict=True,
    )
    sealed_for = {
        other: sealed(_sealing_key(mine.sealing, said, root, number, other), seed + key, root)
        for (other, said), (seed, key) in zip(neighbours.items(), dealt, strict=True)
    }
    mine = replace(mine, root=root, cohort=frozenset(board.digests), neighbours=neighbours)
    return mine, Dealt(number=number, sealed=sealed_for)


def mask(mine: Remembered, sealed_shares: Mapping[int, bytes], values: Residues) -> tuple[Remembered, Masked]:
    """Send the device's numbers under its own mask, and a mask between it and each neighbour that dealt it shares.

    Args:
        mine: after ``deal``.
        sealed_shares: what each neighbour sealed for this device.
        values: residues modulo 2^bits, as many as the setting says; noise is in them.

    Raises:
        UpdateError: too few neighbours dealt, somebody did who is none, a message is not theirs, the numbers are not
            as set; or other numbers were masked before.
    """
    setting, number = mine.setting, mine.said.number
    if values.dtype != dtype_of(setting.bits) or values.shape != (setting.numbers,):
        raise UpdateError(
            f"{values.shape} numbers of {values.dtype} are not the {setting.numbers} of the setting: refused"
        )
    if int(values.max()) >> setting.bits:
        raise UpdateError(f"a number is no residue modulo 2^{setting.bits}: refused")
    if strangers := set(sealed_shares) - set(mine.neighbours):
        raise UpdateError(f"{len(strangers)} of those who dealt are no neighbours: refused")
    if len(sealed_shares) < setting.threshold:
        raise UpdateError(f"{len(sealed_shares)} neighbours dealt, below the threshold of {setting.threshold}: refused")
    given = hashlib.sha256(np.ascontiguousarray(values).data)
    for other in sorted(sealed_shares):
        given.update(other.to_bytes(8, "big") + hashlib.sha256(sealed_shares[other]).digest())
    mine = mine.taking("mask", given.digest())
    shares = {}
    for other, data in sealed_shares.items():
        key = _sealing_key(mine.sealing, mine.neighbours[other], mine.root, other, number)
        message = unsealed(key, data, mine.root)
        if len(message) != 2 * SHARE_BYTES:
            raise UpdateError(f"the shares of device {other} have another length: refused")
        shares[other] = message[:SHARE_BYTES], message[SHARE_BYTES:]
    out = values.copy()
    add_mask(out, derived_key(mine.seed, info_of(b"own mask", mine.root, number)), 1)
    for other in shares:
        key = agreed_key(mine.masking, mine.neighbours[other].masking, pair_mask_info(mine.root, number, other))
        add_mask(out, key, 1 if number < other else -1)
    return replace(mine, shares=shares), Masked(number=number, values=cut_to(out, setting.bits))


def vouch(mine: Remembered, survivors: Sequence[int], sign: Sign) -> tuple[Remembered, Voucher]:
    """Vouch for the list of those whose numbers came; a device vouches for one list.

    Raises:
        UpdateError: the list lacks the device, repeats, is below the minimum, or has too few of its neighbours; or it
            vouched for another one.
    """
    setting, listed = mine.setting, set(survivors)
    if mine.said.number not in listed or len(listed) != len(survivors) or not listed <= mine.cohort:
        raise UpdateError("the list of survivors lacks this device, repeats, or names others than the cohort: refused")
    if len(listed) < setting.minimum:
        raise UpdateError(f"{len(listed)} devices survive, and {setting.minimum} must: nothing is opened")
    if len(listed & set(mine.shares)) < setting.threshold:
        raise UpdateError(f"fewer than {setting.threshold} neighbours survive: nothing is opened")
    said = survivors_said(mine.root, survivors)
    mine = mine.taking("vouch", hashlib.sha256(said).digest())
    return replace(mine, survivors=tuple(sorted(survivors))), Voucher(number=mine.said.number, signature=sign(said))


def open_shares(mine: Remembered, vouchers: Iterable[Voucher], verify: Verify) -> tuple[Remembered, Opened]:
    """Open one share of each neighbour, once enough neighbours vouched for the list that this device vouched for.

    Raises:
        UpdateError: fewer than the threshold did, by signatures that hold.
    """
    said, threshold = survivors_said(mine.root, mine.survivors), mine.setting.threshold
    mine = mine.taking("open", hashlib.sha256(said).digest())
    listed = set(mine.survivors)
    vouching = {
        one.number
        for one in vouchers
        if one.number in mine.neighbours and one.number in listed and verify(one.number, said, one.signature)
    }
    if len(vouching) < threshold:
        raise UpdateError(f"{len(vouching)} neighbours vouch for the survivors, below the threshold of {threshold}")
    seeds = {other: seed for other, (seed, _) in mine.shares.items() if other in listed}
    keys = {other: key for other, (_, key) in mine.shares.items() if other not in listed}
    return mine, Opened(number=mine.said.number, seeds=seeds, keys=keys)


def _sealing_key(private: bytes, other: Advertisement, root: bytes, sender: int, receiver: int) -> bytes:
    """Return the key of what one device seals for another, alike for both."""
    return agreed_key(private, other.sealing, info_of(b"shares", root, sender, receiver))
