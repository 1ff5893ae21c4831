"""The scheme: exact sums whoever drops out, nothing below the threshold, and what a server that lies is refused."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.stats import kstest

from fedrecall.privacy.secure_aggregation import device, server
from fedrecall.privacy.secure_aggregation.agreement import agreed_key, derived_key, public_key
from fedrecall.privacy.secure_aggregation.masks import add_mask, cut_to, dtype_of, stream_of
from fedrecall.privacy.secure_aggregation.records import (
    Advertisement,
    Board,
    Masked,
    Opened,
    Setting,
    Voucher,
    digest_of,
    info_of,
    pair_mask_info,
)
from fedrecall.privacy.secure_aggregation.sharing import secret_of
from fedrecall.protocol.errors import PlanError, UpdateError

KEYS = {number: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(bytes([number])).digest()) for number in range(201)}
SUBJECT = hashlib.sha256(b"plan, round, model, question").digest()


def setting_of(neighbours: int = 6, threshold: int = 4, minimum: int = 3, bits: int = 12, numbers: int = 5) -> Setting:
    return Setting(
        subject=SUBJECT, numbers=numbers, bits=bits, neighbours=neighbours, threshold=threshold, minimum=minimum
    )


def verify(number: int, message: bytes, signature: bytes) -> bool:
    try:
        KEYS[number].public_key().verify(signature, message)
    except (InvalidSignature, KeyError):
        return False
    return True


class Party:
    """A device of the tests, with a stream of its own for randomness."""

    def __init__(self, number: int, setting: Setting) -> None:
        self.number = number
        drawn = iter(range(1 << 20))
        self.mine, self.said = device.advertise(
            setting,
            number,
            KEYS[number].sign,
            random=lambda n: stream_of(hashlib.sha256(b"%d %d" % (number, next(drawn))).digest(), n),
        )

    def take(self, step: Any, *given: Any) -> Any:
        self.mine, out = step(self.mine, *given)
        return out


def values_of(setting: Setting, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << setting.bits, (count, setting.numbers)).astype(dtype_of(setting.bits))


def dealt_round(
    setting: Setting, count: int, dealing: Sequence[int] | None = None
) -> tuple[Any, dict[int, Party], Any]:
    """A round up to the shares: the server's, the parties, and what those dealt that did."""
    parties = {number: Party(number, setting) for number in range(count)}
    round = server.Round(setting, [party.said for party in parties.values()], verify)
    dealt = [
        parties[n].take(device.deal, round.board(n), verify) for n in (range(count) if dealing is None else dealing)
    ]
    return round, parties, dealt


def played(
    setting: Setting,
    count: int,
    *,
    dealing: Sequence[int] | None = None,
    masking: Sequence[int] | None = None,
    opening: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the opened sum and the plain one of a round in which only those named take each step."""
    round, parties, dealt = dealt_round(setting, count, dealing)
    dealers = [one.number for one in dealt]
    masking = dealers if masking is None else masking
    values = values_of(setting, count)
    masked = [parties[n].take(device.mask, server.delivered(dealt, n), values[n]) for n in masking]
    vouchers = [parties[n].take(device.vouch, masking, KEYS[n].sign) for n in masking]
    opened = [parties[n].take(device.open_shares, vouchers, verify) for n in (masking if opening is None else opening)]
    found = server.opened_sum(round, dealers, *server.masked_sum(round, masked), opened)
    plain = values[list(masking)].astype(np.int64).sum(axis=0) % (1 << setting.bits)
    return found, plain


@pytest.mark.parametrize(("count", "neighbours", "threshold"), [(3, 2, 2), (4, 3, 2), (9, 8, 5), (30, 12, 8)])
@pytest.mark.parametrize("bits", [2, 32])
def test_the_opened_sum_is_the_plain_one(count: int, neighbours: int, threshold: int, bits: int) -> None:
    found, plain = played(setting_of(neighbours, threshold, bits=bits), count)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("seed", range(6))
def test_whoever_drops_out_at_any_step_the_sum_is_that_of_the_survivors(seed: int) -> None:
    """Cohorts of 20 to 60; up to a sixteenth vanish before each step."""
    rng = np.random.default_rng(seed)
    count, setting = int(rng.integers(20, 60)), setting_of(18, 10, minimum=5)
    everyone = list(range(count))

    def lose(some: list[int]) -> list[int]:
        gone = set(rng.choice(some, size=int(rng.integers(0, len(some) // 16 + 2)), replace=False).tolist())
        return [one for one in some if one not in gone]

    dealing = lose(everyone)
    masking = lose(dealing)
    opening = lose(masking)
    found, plain = played(setting, count, dealing=dealing, masking=masking, opening=opening)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(("count", "threshold"), [(4, 2), pytest.param(5, 3, marks=pytest.mark.slow)])
def test_every_pattern_of_dropouts_of_a_small_cohort_is_exact_or_void(count: int, threshold: int) -> None:
    """Each device stops before it deals, masks or opens, or never: all 4^n patterns, where everybody is a neighbour."""
    setting = setting_of(count - 1, threshold)
    exact = void = 0
    for last in itertools.product(range(4), repeat=count):
        dealing, masking, opening = ([n for n in range(count) if last[n] >= step] for step in (1, 2, 3))
        # A device that masks needs a threshold of shares, a survivor of survivors; a secret of those who open.
        alive = len(masking) >= setting.minimum and len(dealing) > threshold and len(masking) > threshold
        enough = all(sum(n in opening for n in range(count) if n != one) >= threshold for one in dealing)
        if alive and enough and len(opening) >= 1:
            found, plain = played(setting, count, dealing=dealing, masking=masking, opening=opening)
            np.testing.assert_array_equal(found, plain)
            exact += 1
        else:
            with pytest.raises(UpdateError):
                played(setting, count, dealing=dealing, masking=masking, opening=opening)
            void += 1
    assert exact > 1 and void > exact


def masked_round(
    setting: Setting, count: int, seed: int = 0
) -> tuple[server.Round, dict[int, Party], list[Masked], Any]:
    """A round up to the masked numbers, of all; and the numbers."""
    round, parties, dealt = dealt_round(setting, count)
    values = values_of(setting, count, seed)
    masked = [parties[n].take(device.mask, server.delivered(dealt, n), values[n]) for n in range(count)]
    return round, parties, masked, values


def test_with_a_share_too_few_nothing_is_opened_and_all_that_is_left_opens_nothing() -> None:
    """Every share of the round that the server got, in every combination, gives no secret of the devices."""
    setting = setting_of(5, 4, minimum=6)
    round, parties, masked, _ = masked_round(setting, 6)
    vouchers = [parties[n].take(device.vouch, range(6), KEYS[n].sign) for n in range(6)]
    opened = [parties[n].take(device.open_shares, vouchers, verify) for n in range(3)]
    with pytest.raises(UpdateError, match="below the threshold"):
        server.opened_sum(round, range(6), *server.masked_sum(round, masked), opened)
    for owner in range(6):
        shares = {one.number + 1: one.seeds[owner] for one in opened if owner in one.seeds}
        for size in range(1, len(shares) + 1):
            for chosen in itertools.combinations(shares, size):
                try:
                    secret = secret_of({point: shares[point] for point in chosen})
                except UpdateError:
                    continue
                assert hashlib.sha256(secret).digest() != round.advertisements[owner].committed


def test_what_the_server_and_colluders_know_leaves_the_others_uniform() -> None:
    """40 devices, 12 colluders: all masks that those know are taken away, and what stays of each other is random."""
    setting = setting_of(14, 10, bits=16, numbers=4000)
    round, parties, masked, values = masked_round(setting, 40)
    colluders = range(12)
    for honest in (12, 25, 39):
        left = masked[honest].values.copy()
        for other in round.graph[honest]:
            if other in colluders:
                info = pair_mask_info(round.root, honest, other)
                key = agreed_key(parties[other].mine.masking, round.advertisements[honest].masking, info)
                add_mask(left, key, -1 if honest < other else 1)
        assert kstest(cut_to(left, 16) / 65536, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(left, values[honest])[0, 1]) < 0.07
        assert not np.array_equal(left, values[honest])
        # With the device's own mask gone too, which nobody opened, others' masks still hide it.
        add_mask(left, derived_key(parties[honest].mine.seed, info_of(b"own mask", round.root, honest)), -1)
        assert kstest(cut_to(left, 16) / 65536, "uniform").pvalue > 1e-3


def test_a_step_that_is_repeated_gives_the_same_bytes_and_another_input_is_refused() -> None:
    setting = setting_of()
    round, parties, dealt = dealt_round(setting, 8)
    values = values_of(setting, 8)
    one = parties[0]
    assert one.take(device.deal, round.board(0), verify) == dealt[0]
    first = one.take(device.mask, server.delivered(dealt, 0), values[0])
    again = one.take(device.mask, server.delivered(dealt, 0), values[0])
    np.testing.assert_array_equal(first.values, again.values)
    with pytest.raises(UpdateError, match="another input"):
        one.take(device.mask, server.delivered(dealt, 0), values[1])
    with pytest.raises(UpdateError, match="another input"):
        one.take(device.mask, server.delivered(dealt[:-2], 0), values[0])
    fewer = server.Round(setting, [party.said for party in parties.values()][:-1], verify)
    with pytest.raises(UpdateError, match="another input"):
        one.take(device.deal, fewer.board(0), verify)
    vouched = one.take(device.vouch, range(8), KEYS[0].sign)
    assert one.take(device.vouch, range(8), KEYS[0].sign) == vouched
    with pytest.raises(UpdateError, match="another input"):
        one.take(device.vouch, range(7), KEYS[0].sign)


def test_steps_come_in_order() -> None:
    one = Party(0, setting_of())
    with pytest.raises(UpdateError):
        one.take(device.mask, {}, values_of(setting_of(), 1)[0])
    with pytest.raises(UpdateError):
        one.take(device.vouch, range(8), KEYS[0].sign)
    with pytest.raises(UpdateError):
        one.take(device.open_shares, [], verify)


def test_two_lists_of_survivors_open_nothing() -> None:
    """A server that tells one half that some dropped out, and the other half that others did, gets no share."""
    setting = setting_of(9, 6)
    _, parties, masked, _ = masked_round(setting, 10)
    lists = [list(range(10)) if n % 2 else list(range(9)) for n in range(10)]
    lists[9] = list(range(10))
    vouchers = [parties[n].take(device.vouch, lists[n], KEYS[n].sign) for n in range(10)]
    for n in range(10):
        with pytest.raises(UpdateError, match="vouch"):
            parties[n].take(device.open_shares, vouchers, verify)
    assert len(masked) == 10


def test_no_device_gives_both_kinds_of_share_of_a_neighbour() -> None:
    setting = setting_of(7, 5)
    _, parties, _, _ = masked_round(setting, 8)
    survivors = [0, 1, 2, 3, 4, 5, 6]
    vouchers = [parties[n].take(device.vouch, survivors, KEYS[n].sign) for n in survivors]
    for n in survivors:
        opened = parties[n].take(device.open_shares, vouchers, verify)
        assert not set(opened.seeds) & set(opened.keys)
        assert set(opened.keys) == {7} and set(opened.seeds) == set(survivors) - {n}
        with pytest.raises(UpdateError, match="another input"):
            parties[n].take(device.vouch, range(8), KEYS[n].sign)


@pytest.mark.parametrize("forged", ["stranger", "unsigned", "false", "of another setting", "of nobody"])
def test_vouchers_that_count_are_signed_by_neighbours_on_the_list(forged: str) -> None:
    setting = setting_of(7, 5)
    _, parties, _, _ = masked_round(setting, 8)
    vouchers = [parties[n].take(device.vouch, range(8), KEYS[n].sign) for n in range(8)]
    bad = {
        "stranger": [Voucher(number=100 + n, signature=KEYS[100 + n].sign(b"x")) for n in range(8)],
        "unsigned": [replace(one, signature=b"") for one in vouchers],
        "false": [replace(one, signature=vouchers[0].signature) for one in vouchers],
        "of another setting": [replace(one, signature=KEYS[one.number].sign(b"survivors")) for one in vouchers],
        "of nobody": [vouchers[1]] * 8,
    }[forged]
    with pytest.raises(UpdateError, match="vouch"):
        parties[0].take(device.open_shares, bad, verify)
    assert parties[0].take(device.open_shares, vouchers, verify).seeds


@pytest.mark.parametrize(
    "survivors", [[1, 2, 3, 4, 5, 6, 7], [0, 1], [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 99], [0]]
)
def test_lists_of_survivors_that_hide_nobody_are_refused(survivors: list[int]) -> None:
    setting = setting_of(7, 5, minimum=6)
    _, parties, _, _ = masked_round(setting, 8)
    with pytest.raises(UpdateError):
        parties[0].take(device.vouch, survivors, KEYS[0].sign)


def forged_board(board: Board, how: str, setting: Setting) -> Board:
    neighbours, digests = dict(board.neighbours), dict(board.digests)
    victim = sorted(neighbours)[0]
    said = neighbours[victim]
    if how == "missing":
        del neighbours[victim]
    elif how == "replaced":
        neighbours[victim] = replace(said, masking=public_key(bytes(31) + b"\x01"))
    elif how == "replaced and listed":
        neighbours[victim] = replace(said, masking=public_key(bytes(31) + b"\x01"))
        digests[victim] = digest_of(neighbours[victim], setting)
    elif how == "invented":
        for number in range(190, 201):
            fresh = Party(number, setting).said
            neighbours[number] = replace(fresh, number=number + 50)
            digests[number + 50] = digest_of(neighbours[number], setting)
            neighbours[number + 50] = neighbours.pop(number)
    elif how == "few":
        digests = {number: digests[number] for number in sorted(digests)[:2]}
    else:
        digests[0] = digests[1]
    return Board(digests=digests, neighbours=neighbours)


@pytest.mark.parametrize("how", ["missing", "replaced", "replaced and listed", "invented", "few", "itself replaced"])
def test_boards_that_lie_are_refused(how: str) -> None:
    setting = setting_of()
    parties = {number: Party(number, setting) for number in range(8)}
    round = server.Round(setting, [party.said for party in parties.values()], verify)
    board = forged_board(round.board(0), how, setting)
    if how != "missing":
        # The graph follows the root: what is shown beside the forgery are all true advertisements.
        true = {n: parties[n].said for n in range(8)}
        board = replace(board, neighbours={**true, **board.neighbours})
    with pytest.raises(UpdateError):
        parties[0].take(device.deal, board, verify)


def test_advertisements_that_are_not_signed_as_they_are_stay_out() -> None:
    setting, other = setting_of(), replace(setting_of(), subject=hashlib.sha256(b"another model").digest())
    said = [Party(n, setting).said for n in range(8)]
    small = replace(said[5], masking=bytes(32))
    small = replace(small, signature=KEYS[5].sign(small.said(setting)))
    bad = [
        replace(said[1], masking=said[2].masking),
        replace(said[2], signature=b""),
        replace(said[3], number=4),
        Party(4, other).said,
        small,
        replace(said[6], number=-1),
    ]
    round = server.Round(setting, [said[0], *bad, said[7], Party(8, setting).said], verify)
    assert sorted(round.advertisements) == [0, 7, 8] and len(round.refused) == len(bad)
    with pytest.raises(UpdateError, match="void"):
        server.Round(setting, [said[0], *bad, said[7]], verify)


def test_a_number_that_advertises_twice_is_left_out() -> None:
    setting = setting_of()
    said = [Party(n, setting).said for n in range(8)]
    _, second = device.advertise(setting, 3, KEYS[3].sign)
    round = server.Round(setting, [*said, second, said[0]], verify)
    assert sorted(round.advertisements) == [0, 1, 2, 4, 5, 6, 7]


def test_devices_that_were_shown_other_things_cancel_nothing() -> None:
    """Were the advertisements taken for signed, the keys would still differ: of pairs, boards and own masks."""
    one, other = setting_of(), replace(setting_of(), subject=hashlib.sha256(b"another model").digest())
    parties = [Party(n, one if n < 4 else other) for n in range(8)]
    boards = [
        Board(
            digests={p.number: digest_of(p.said, setting) for p in parties},
            neighbours={p.number: p.said for p in parties},
        )
        for setting in (one, other)
    ]
    assert boards[0].root(one) != boards[1].root(other) != boards[0].root(other)
    with pytest.raises(UpdateError, match="signed"):
        parties[0].take(device.deal, boards[0], verify)


def test_shares_that_are_not_for_the_device_or_come_from_strangers_are_refused() -> None:
    setting = setting_of()
    _, parties, dealt = dealt_round(setting, 8)
    mine = server.delivered(dealt, 0)
    others = server.delivered(dealt, 1)
    values = values_of(setting, 8)[0]
    victim = next(iter(mine))
    for bad in (
        {**mine, victim: others.get(victim, b"x" * len(mine[victim]))},
        {**mine, victim: mine[victim][:-1]},
        {**mine, 150: mine[victim]},
        dict(list(mine.items())[: setting.threshold - 1]),
    ):
        with pytest.raises(UpdateError):
            device.mask(parties[0].mine, bad, values)


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v.astype(np.uint32), lambda v: v | (1 << 12)])
def test_numbers_that_are_not_as_set_are_refused(change: Any) -> None:
    setting = setting_of()
    _, parties, dealt = dealt_round(setting, 8)
    with pytest.raises(UpdateError):
        device.mask(parties[0].mine, server.delivered(dealt, 0), change(values_of(setting, 8)[0]))


def spoiled(opened: list[Opened], count: int) -> list[Opened]:
    return [
        replace(one, seeds={n: bytes(len(s)) for n, s in one.seeds.items()}) if i < count else one
        for i, one in enumerate(opened)
    ]


def test_few_false_shares_are_passed_over_and_many_void_the_round() -> None:
    setting = setting_of(9, 6)
    round, parties, masked, values = masked_round(setting, 10)
    vouchers = [parties[n].take(device.vouch, range(10), KEYS[n].sign) for n in range(10)]
    opened = [parties[n].take(device.open_shares, vouchers, verify) for n in range(10)]
    plain = values.astype(np.int64).sum(axis=0) % (1 << setting.bits)
    survivors, total = server.masked_sum(round, masked)
    found = server.opened_sum(round, range(10), survivors, total, spoiled(opened, 2))
    np.testing.assert_array_equal(found, plain)
    with pytest.raises(UpdateError, match="advertised"):
        server.opened_sum(round, range(10), survivors, total, spoiled(opened, 9))
    with pytest.raises(UpdateError, match="twice"):
        server.masked_sum(round, [*masked, masked[0]])
    with pytest.raises(UpdateError, match="none of the round"):
        server.masked_sum(round, [replace(masked[0], number=77)])
    with pytest.raises(UpdateError, match="as set"):
        server.masked_sum(round, [replace(masked[0], values=masked[0].values[:-1])])


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 3},
        {"threshold": 7},
        {"neighbours": 1},
        {"minimum": 2},
        {"numbers": 0},
        {"bits": 33},
        {"subject": b"short"},
        {"threshold": 4.0},
    ],
)
def test_settings_that_open_too_easily_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        replace(setting_of(), **fields)


def test_advertisements_are_records_without_secrets() -> None:
    party = Party(0, setting_of())
    said = party.said
    told = said.sealing + said.masking + said.committed + said.signature
    assert isinstance(said, Advertisement)
    for secret in (party.mine.sealing, party.mine.masking, party.mine.seed):
        assert secret not in told
