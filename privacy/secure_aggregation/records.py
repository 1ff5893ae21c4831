"""What a round of secure aggregation is about, and what devices and the server send each other in it.

Five messages a device: it *advertises* two public keys, signed; it deals *shares* of two secrets to its neighbours,
sealed; it sends its *masked* numbers; it *vouches* for the list of those whose numbers came; it *opens* one secret of
each neighbour, which secret by that list. All that follows from the cohort's advertisements, its *board*, has its root
in every key.

Guarantees, for devices that run this and a threshold that ``neighbours.graph_for`` worked out:

- The server learns, of the numbers of those devices, a sum over a list of at least ``minimum`` survivors that each of
  them has seen, and nothing else, unless more devices tell it what they know than the graph was made for.
- That holds too if the server lies: about who takes part (advertisements are signed by enrolled keys), about what was
  asked (the ``Setting`` is in all keys: masks of devices that were shown different things cancel nothing), about who
  survived (a device vouches for one list, opens by a list that a threshold of its neighbours vouched for, and gives
  one kind of share a neighbour).
- It does not make a server answer, nor a sum right: whoever takes part can spoil it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedrecall.privacy.secure_aggregation.agreement import check_point
from fedrecall.privacy.secure_aggregation.masks import Residues, dtype_of
from fedrecall.privacy.secure_aggregation.neighbours import graph_over
from fedrecall.protocol.errors import PlanError, UpdateError

Sign = Callable[[bytes], bytes]
"""Signs with a device's enrolled key."""
Verify = Callable[[int, bytes, bytes], bool]
"""Whether a device of that number, by its enrolled key, signed a message so; of anybody unknown, no."""

_MOST_DEVICES, _MOST_NUMBERS = 1 << 20, 1 << 28


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is public about a round before it begins; whoever disagrees about any of it agrees on no key.

    Attributes:
        subject: digest of the plan, the round and all that devices were shown and asked.
        numbers: that each device sends.
        bits: of the modulus, 2 to 32.
        neighbours: of each device, in a cohort that has so many.
        threshold: shares that open a secret.
        minimum: fewer survivors open nothing.
    """

    subject: bytes
    numbers: int
    bits: int
    neighbours: int
    threshold: int
    minimum: int

    def __post_init__(self) -> None:
        """Refuse what opens too easily, or never."""
        dtype_of(self.bits)
        if type(self.subject) is not bytes or len(self.subject) != 32:
            raise PlanError("subject is no digest of 32 bytes")
        for name, least, most in (
            ("numbers", 1, _MOST_NUMBERS),
            ("neighbours", 2, _MOST_DEVICES),
            ("threshold", 2, self.neighbours),
            ("minimum", 3, _MOST_DEVICES),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise PlanError(f"{name} is {value}: choose it between {least} and {most}")
        if 2 * self.threshold <= self.neighbours:
            raise PlanError(
                f"threshold is {self.threshold} of {self.neighbours} neighbours: above half of them, or both secrets "
                "of a device could be opened"
            )

    def digest(self) -> bytes:
        """Return 32 bytes that name all of it."""
        fields = [self.subject.hex(), self.numbers, self.bits, self.neighbours, self.threshold, self.minimum]
        return hashlib.sha256(b"fedrecall secure aggregation 1" + json.dumps(fields).encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Advertisement:
    """A device's public keys of one round.

    Attributes:
        number: of the device.
        sealing: X25519 key, for what is said between neighbours.
        masking: X25519 key, for the masks between neighbours.
        committed: SHA-256 of the seed of the device's own mask.
        signature: of all of it and the setting, by the device's enrolled key.
    """

    number: int
    sealing: bytes
    masking: bytes
    committed: bytes
    signature: bytes

    def said(self, setting: Setting) -> bytes:
        """Return the bytes that are signed."""
        number = self.number.to_bytes(8, "big")
        return b"advertise" + setting.digest() + number + self.sealing + self.masking + self.committed

    def check(self, setting: Setting, verify: Verify) -> None:
        """Raise UpdateError where the device did not say so in this round, or a key is none."""
        shaped = type(self.number) is int and 0 <= self.number < 1 << 63
        sized = all(len(part) == 32 for part in (self.sealing, self.masking, self.committed))
        if not (shaped and sized) or not verify(self.number, self.said(setting), self.signature):
            raise UpdateError(f"the advertisement of device {self.number} is not signed by it: refused")
        for key in (self.sealing, self.masking):
            check_point(key)


@dataclass(frozen=True, kw_only=True)
class Board:
    """Who takes part: a device sees digests of all advertisements, and those of its neighbours whole.

    Attributes:
        digests: SHA-256 of what each device said, by number.
        neighbours: the advertisements of the reader's neighbours, at least.
    """

    digests: Mapping[int, bytes]
    neighbours: Mapping[int, Advertisement]

    def root(self, setting: Setting) -> bytes:
        """Return 32 bytes that name the setting and everybody's advertisement."""
        hashed = hashlib.sha256(b"board" + setting.digest())
        for number in sorted(self.digests):
            hashed.update(number.to_bytes(8, "big") + self.digests[number])
        return hashed.digest()

    def graph(self, setting: Setting) -> dict[int, tuple[int, ...]]:
        """Return everybody's neighbours, fixed by the root: no server chooses them but by who advertises."""
        return graph_over(tuple(self.digests), setting.neighbours, self.root(setting))


def digest_of(advertisement: Advertisement, setting: Setting) -> bytes:
    """Return what a board says of an advertisement."""
    return hashlib.sha256(advertisement.said(setting)).digest()


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Sealed shares of a device's secrets, by the neighbour that each is for."""

    number: int
    sealed: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Masked:
    """A device's numbers under its masks."""

    number: int
    values: Residues


@dataclass(frozen=True, kw_only=True)
class Voucher:
    """A device's signature of the list of survivors."""

    number: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A device's shares of its neighbours' secrets: of survivors those of the own mask's seed, else of the masking key.

    No neighbour is in both.
    """

    number: int
    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]


def survivors_said(root: bytes, survivors: Sequence[int]) -> bytes:
    """Return the bytes that a voucher signs."""
    return b"survivors" + root + b"".join(one.to_bytes(8, "big") for one in sorted(survivors))


def info_of(kind: bytes, root: bytes, *numbers: int) -> bytes:
    """Return what a key is for: one kind of use, in one round, of one device or of a pair in this order."""
    return b"fedrecall " + kind + root + b"".join(one.to_bytes(8, "big") for one in numbers)


def pair_mask_info(root: bytes, one: int, other: int) -> bytes:
    """Return what the key of the mask between two devices is for, alike for both."""
    return info_of(b"pair mask", root, min(one, other), max(one, other))
