"""The private start of a deployment: it ends where a simulation ends, takes no lie, and no second release."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from fedrecall.client.device.app import app
from fedrecall.client.device.folder import DeviceFolder, task_of
from fedrecall.client.events.store import EventStore
from fedrecall.models.recall import initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import SecureNoise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, PlanError
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.deployment.app import run
from fedrecall.server.deployment.grid import update_of
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.pace import read_progress
from fedrecall.server.deployment.starting import check_start
from fedrecall.server.training.checkpoint import load_latest, save_checkpoint
from fedrecall.server.training.content_features import content_features
from fedrecall.simulations.config import RunConfig, parse_config
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.start import start_settings
from fedrecall.simulations.training.world import World, trained_names

from ...client.device.small_devices import enrol
from .flower_nodes import Node, flower
from .test_grid import honest, reply, tampering

ITEMS, DIM = 30, 6
TITLES = [f"{'red' if item % 2 else 'blue'} thing ({1990 + item // 3})" for item in range(ITEMS)]
MODEL = {"dim": DIM, "window": 5, "blocks": 0, "heads": 1, "hidden": 2, "user_dim": 1, "user_hidden": 2}


@dataclass(kw_only=True, eq=False)
class Small:
    """A deployment of a few devices in real folders, and the simulation of the same."""

    world: World
    job: Job
    folders: list[Path]
    asked: list[str]

    def ask(self, mechanism: str, arrays: Arrays, cohort: np.ndarray, max_bytes: int) -> Iterator[Update]:
        """Ask each folder itself, without Flower."""
        self.asked.append(mechanism)
        header = {"round": 0, "mechanism": mechanism, "clip_norm": None, "task": self.job.task.digest()}
        for number in cohort.tolist():
            update = update_of(DeviceFolder(self.folders[number]).answer(pack(arrays, header)))
            assert sum(array.nbytes for array in update.arrays.values()) <= max_bytes <= self.job.bytes_of_start()
            yield update

    def run(self, ask: Callable[..., Any] | None = None) -> dict[str, np.ndarray]:
        """Run the job's start; the job has no rounds, or nobody answers them."""
        job = Job.load(self.job.folder)
        return dict(job.run(lambda *_: [], Counter(), ask=ask or self.ask).arrays)

    def charged(self) -> list[str]:
        """Return the mechanisms that the server's ledger holds."""
        return [name for name, count in Ledger.read(self.job.folder / "ledger.jsonl").spent().items() if count]


def configured(**sections: dict[str, Any]) -> RunConfig:
    start = {"items": 12, "content_items": 20, "reach": 3.0}
    given = {"threads": 1, "model": MODEL, "local": {"negatives": 4}, "server": {"optimiser": "sgd"}}
    return parse_config(given | {"privacy": {"epsilon": None}, "start": start, "rounds": {"count": 0}} | sections)


def small(tmp_path: Path, config: RunConfig, *, devices: int = 3, simulated: bool = False) -> Small:
    rng = np.random.default_rng(3)
    counts = np.arange(2, 2 + 4 * devices, 4)
    store = EventStore.from_columns(
        users=np.repeat(np.arange(devices), counts),
        items=(ITEMS * rng.random(counts.sum()) ** 2).astype(np.int64),
        n_users=devices,
        n_items=ITEMS,
    )
    shape = ModelShape(n_items=ITEMS, n_features=0, n_types=1, **MODEL)
    content = content_features(TITLES, [()] * ITEMS)
    plan = replace(plan_for(config, devices), simulated=simulated)
    world = World(config=config, plan=plan, store=store, features=None, shape=shape, content=content)
    task = task_of(plan, shape, config.local, trained_names(world), config.seed)
    fresh = initial_arrays(shape, derive_seed(config.seed, "model"))
    folder = tmp_path / "server"
    folder.mkdir(parents=True)
    starting = start_settings(config, plan, ITEMS)
    job = Job(folder=folder, task=task, config=config.server, deadline_s=20.0, wait_s=20.0, starting=starting)
    job.save({name: fresh[name].numpy() for name in shared_names(fresh)}, content)
    plain = SimpleNamespace(store=store, shape=shape, features=None)
    return Small(world=world, job=job, folders=enrol(tmp_path / "devices", plain, task), asked=[])


def over_flower(made: Small, nodes: dict[int, Node], connected: int) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """Run the job as the server's app does, over the first ``connected`` devices; returns the model and refusals."""
    behaviours = [nodes.get(number, honest) for number in range(connected)]
    with flower(behaviours, [{"device": str(folder)} for folder in made.folders[:connected]]) as grid:
        run(grid, Job.load(made.job.folder))
    saved = load_latest(made.job.folder / "checkpoints")
    assert saved is not None
    return dict(saved.arrays), Counter(read_progress(made.job.folder)["refused"])


@pytest.mark.parametrize("epsilon", [None, 50.0])
def test_a_deployment_ends_where_a_simulation_ends(epsilon: float | None, tmp_path: Path) -> None:
    """Start and two rounds, over real messages and folders; with noise, the same noise."""
    made = small(
        tmp_path,
        configured(privacy={"epsilon": epsilon}, rounds={"count": 2, "train": ["transformer."]}),
        simulated=True,
    )
    expected = train(made.world, tmp_path / "simulated", resume=False, validate=None, progress=lambda *_: None).arrays
    found, refusals = over_flower(made, {}, 3)
    assert not refusals
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
    start = made.job.start()
    if epsilon is not None:
        # Content weighs as much as the noise's edge makes it.
        assert (np.abs(found["item.id.weight"][:, 1:]).max(axis=1) > 1e-3).all(), "content reaches every item"
    for name in ("item.id.weight", "transformer.recency.age.weight", "transformer.recency.project.weight"):
        assert np.abs(found[name] - start[name]).max() > 1e-2, "the start has made it"


def without(name: str, change: Callable[[np.ndarray], np.ndarray], of: str = "second_moments") -> Node:
    return tampering(lambda a, h: ({**a, name: change(a[name])} if of in a else a, h))


def repeating() -> Node:
    """Return a node that answers every ask with what it told of popularity."""
    kept: list[bytes] = []

    def node(message: Message, context: Context) -> Message | None:
        found = app(message, context)
        if message.metadata.message_type == "query":
            return found
        kept.append(found.content.array_records["update"]["packed"].data)
        return reply(message, kept[0])

    return node


HOSTILE: dict[str, tuple[Node, str, int]] = {
    "NaN": (tampering(lambda a, h: ({**a, "scale": a["scale"] * np.float32(np.nan)}, h)), "nan", 2),
    "infinite": (tampering(lambda a, h: ({**a, "scale": a["scale"] + np.float32(np.inf)}, h)), "nan", 2),
    "x 100": (tampering(lambda a, h: ({**a, "scale": np.float32(100) * a["scale"]}, h)), "norm", 2),
    "a little above 1": (tampering(lambda a, h: ({**a, "scale": np.float32(1.0001) * a["scale"]}, h)), "norm", 2),
    "below 0": (tampering(lambda a, h: ({**a, "scale": -a["scale"]}, h)), "norm", 2),
    "other pairs": (without("second_moments", lambda codes: np.full_like(codes, 255)), "norm", 1),
    "other items": (without("popularity", lambda bits: np.full_like(bits, 255), "popularity"), "norm", 1),
    "wrong shape": (without("second_moments", lambda codes: codes[:-1]), "shape", 1),
    "another shape of the scale": (tampering(lambda a, h: ({**a, "scale": a["scale"].reshape(1)}, h)), "shape", 2),
    "wrong dtype": (without("second_moments", lambda codes: codes.astype(np.int8)), "dtype", 1),
    "a finer scale": (tampering(lambda a, h: ({**a, "scale": a["scale"].astype(np.float64)}, h)), "dtype", 2),
    "extra array": (tampering(lambda a, h: ({**a, "more": np.zeros(2, np.uint8)}, h)), "extra", 2),
    "no scale": (tampering(lambda a, h: ({n: v for n, v in a.items() if n != "scale"}, h)), "missing", 2),
    "another round": (tampering(lambda a, h: (a, {**h, "round": 1})), "stale", 2),
    "no nonce": (tampering(lambda a, h: (a, {**h, "nonce": ""})), "replay", 2),
    "of the mechanism before": (repeating(), "missing", 1),
    "too large": (tampering(lambda a, h: ({**a, "more": np.zeros(70_000, np.uint8)}, h)), "size", 2),
}
"""A node, the reason that it is refused for, and how many of its two answers are lies."""


def test_hostile_answers_count_as_nothing(tmp_path: Path) -> None:
    """Each kind from a device of its own: the model is, to the bit, the one of a start without the lies."""
    everyone = 3 + len(HOSTILE)
    nodes = {3 + place: node for place, (node, _, _) in enumerate(HOSTILE.values())}
    once = {3 + place for place, (_, _, lies) in enumerate(HOSTILE.values()) if lies == 1}
    first = 3 + list(HOSTILE).index("other items")
    found, refusals = over_flower(small(tmp_path / "hostile", configured(), devices=everyone), nodes, everyone)
    assert refusals == Counter(reason for _, reason, lies in HOSTILE.values() for _ in range(lies))
    silent = small(tmp_path / "silent", configured(), devices=everyone)

    def honest_alone(mechanism: str, arrays: Arrays, cohort: np.ndarray, max_bytes: int) -> Iterator[Update]:
        liars = {"popularity": {first}, "second_moments": once - {first}}[mechanism]
        truthful = [number for number in cohort.tolist() if number < 3 or (number in once and number not in liars)]
        return silent.ask(mechanism, arrays, np.array(truthful), max_bytes)

    expected = silent.run(honest_alone)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_nonce_of_another_device_counts_once(tmp_path: Path) -> None:
    copying = tampering(lambda a, h: (a, {**h, "nonce": "0" * 32}))
    _, refusals = over_flower(small(tmp_path, configured()), {1: copying, 2: copying}, 3)
    assert refusals == {"replay": 2}


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Kill the server at its ``at``-th checkpoint, after the charge and before anything is kept."""
    calls = [0]

    def save(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr("fedrecall.server.deployment.job.save_checkpoint", save)


PRIVATE = {"epsilon": 8.0}


@pytest.mark.parametrize(("at", "lost"), [(1, "popularity"), (2, "second_moments")])
def test_what_was_charged_and_then_lost_is_never_asked_for_again(
    at: int, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = small(tmp_path, configured(privacy=PRIVATE))
    with monkeypatch.context() as patch:
        dying(patch, at)
        with pytest.raises(KeyboardInterrupt):
            made.run()
    with caplog.at_level(logging.WARNING):
        found = made.run()
    assert [record.message for record in caplog.records] == [
        f"{lost} was charged and then lost: it stays charged, the start goes on without"
    ]
    assert made.asked == ["popularity", "second_moments"] and made.charged() == made.asked
    assert found["item.id.weight"][:, 1:].any(), "what is left still makes item vectors"
    assert found["item.id.weight"][:, 0].any() == (lost != "popularity")
    np.testing.assert_array_equal(made.run()["item.id.weight"], found["item.id.weight"])
    assert made.asked == ["popularity", "second_moments"]


def test_with_everything_lost_and_no_content_the_model_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(tmp_path, configured(privacy=PRIVATE, start={"items": 0, "content": 0.0}))
    with monkeypatch.context() as patch:
        dying(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            made.run()
    found, start = made.run(), made.job.start()
    for name in start:
        np.testing.assert_array_equal(found[name], start[name])
    assert made.asked == made.charged() == ["popularity"]


@pytest.mark.parametrize("mechanism", ["popularity", "second_moments"])
def test_a_kill_before_the_charge_asks_again_and_gets_the_same_bytes(mechanism: str, tmp_path: Path) -> None:
    made, twin = small(tmp_path / "one", configured()), small(tmp_path / "twin", configured())

    def killed(name: str, *rest: Any) -> Iterator[Update]:
        for place, update in enumerate(made.ask(name, *rest)):
            if name == mechanism and place == 1:
                raise KeyboardInterrupt
            yield update

    with pytest.raises(KeyboardInterrupt):
        made.run(killed)
    assert mechanism not in made.charged()
    found, expected = made.run(), twin.run()
    again = ["popularity", "popularity", "second_moments"]
    assert made.asked == (again if mechanism == "popularity" else ["popularity", "second_moments", "second_moments"])
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for folder in made.folders:
        assert (folder / "ledger.jsonl").read_text().count('"mechanism"') == 2, "one charge for each"


def test_in_a_simulation_a_replay_draws_the_same_noise_and_is_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(privacy=PRIVATE)
    made, twin = (small(tmp_path / name, config, simulated=True) for name in ("one", "twin"))
    with monkeypatch.context() as patch:
        dying(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            made.run()
    found, expected = made.run(), twin.run()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert Ledger.read(made.job.folder / "ledger.jsonl").spent()["second_moments"] == 1


def test_each_mechanism_is_on_disk_before_the_next_is_asked_for_and_charged_before_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(tmp_path, configured(privacy=PRIVATE))
    kept: list[set[str]] = []
    drawn: list[list[str]] = []

    class Watching(SecureNoise):
        def added(self, *arguments: Any, **options: Any) -> Any:
            drawn.append(made.charged())
            return super().added(*arguments, **options)

    def ask(*asked: Any) -> Iterator[Update]:
        saved = load_latest(made.job.folder / "checkpoints")
        kept.append(set() if saved is None else set(saved.arrays))
        return made.ask(*asked)

    monkeypatch.setattr("fedrecall.server.deployment.chance.SecureNoise", Watching)
    made.run(ask)
    assert kept == [set(), {"popularity"}]
    assert drawn[0] == ["popularity"] and drawn[1:] == [["popularity", "second_moments"]] * 2


def test_a_spent_ledger_stops_the_start(tmp_path: Path) -> None:
    """The ledger of another, finished job of the same plan: nothing is released on it."""
    made = small(tmp_path, configured(privacy=PRIVATE))
    ledger = Ledger.resume(made.job.folder / "ledger.jsonl", made.job.task.plan)
    ledger.charge("popularity", 7, "of another round")
    with pytest.raises(BudgetExhausted):
        made.run()
    assert load_latest(made.job.folder / "checkpoints") is None


def test_noise_reaches_every_item_that_nobody_has(tmp_path: Path) -> None:
    """A release is noise on noise where there is nothing; the un-noised sums are nowhere on disk."""
    made = small(tmp_path, configured(privacy=PRIVATE))
    seen: dict[str, np.ndarray] = {}

    def ask(*asked: Any) -> Iterator[Update]:
        saved = load_latest(made.job.folder / "checkpoints")
        seen.update({} if saved is None else saved.arrays)
        return made.ask(*asked)

    made.run(ask)
    sigma = made.job.task.plan.mechanism("popularity").noise_multiplier
    nobody = np.setdiff1d(np.arange(ITEMS), made.world.store.items)
    assert len(nobody) > 5 and (seen["popularity"][nobody] != 0).all()
    assert 0.3 * sigma < seen["popularity"][nobody].std() < 3 * sigma


def test_what_does_not_fit_together_is_no_job(tmp_path: Path) -> None:
    made = small(tmp_path, configured(privacy=PRIVATE))
    plan, starting, sizes = made.job.task.plan, made.job.starting, made.job.task.shape
    popular, second, rounds = plan.mechanisms
    check_start(plan, starting, sizes)
    wrong = {
        "no settings": (plan, None),
        "no mechanisms": (replace(plan, mechanisms=(rounds,)), starting),
        "no second moments": (replace(plan, mechanisms=(popular, rounds)), starting),
        "unit interaction": (
            replace(plan, unit="interaction", mechanisms=(popular, rounds)),
            starting.model_copy(update={"compared": 0}),
        ),
        "another clip": (replace(plan, mechanisms=(replace(popular, clip_norm=0.5), second, rounds)), starting),
        "many steps": (replace(plan, mechanisms=(replace(popular, steps=2), second, rounds)), starting),
        "void below two": (replace(plan, mechanisms=(replace(popular, min_survivors=2), second, rounds)), starting),
        "one item": (plan, starting.model_copy(update={"compared": 1})),
        "more than there are": (plan, starting.model_copy(update={"compared": ITEMS + 1})),
    }
    for name, (other, settings) in wrong.items():
        with pytest.raises(PlanError):
            check_start(other, settings, sizes)
            pytest.fail(name)
    with pytest.raises(PlanError, match="compares 1500"):
        check_start(plan, starting.model_copy(update={"compared": 1500}), {**sizes, "n_items": 2000})
    with pytest.raises(PlanError, match="ask"):
        made.job.run(lambda *_: [], Counter())


def test_a_job_with_a_start_comes_back_and_content_that_was_altered_does_not(tmp_path: Path) -> None:
    made = small(tmp_path, configured())
    again = Job.load(made.job.folder)
    assert again.starting == made.job.starting
    found = again.content()
    assert found is not None and found.items == 20
    np.testing.assert_array_equal(found.features.toarray(), made.world.content.toarray())
    path = made.job.folder / "content.safetensors"
    parts, header = unpack(path.read_bytes(), what="")
    for altered in ({"indices": parts["indices"] + 10_000}, {"indptr": parts["indptr"][::-1].copy()}):
        path.write_bytes(pack({**parts, **altered}, header))
        with pytest.raises(CorruptArtefact, match="content"):
            again.content()
