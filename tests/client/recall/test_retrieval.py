import numpy as np
import pytest
import torch

from fedrecall.client.config import PersonalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.recall.retrieval import fresh_towers, query_vectors, shared_transformer, tune_towers
from fedrecall.client.training.cohort import Towers
from fedrecall.models.loss import full_softmax
from fedrecall.models.recall import initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.models.towers import UserTower
from fedrecall.models.transformer import Transformer

SHAPE = ModelShape(
    n_items=12, n_features=0, n_types=2, dim=4, window=5, blocks=1, heads=2, hidden=5, user_dim=2, user_hidden=3
)
HISTORIES = ([], [3], [4, 4, 4, 4], [0, 7], [9, 8, 9, 8, 7, 10, 0, 1])
USERS = np.arange(len(HISTORIES))


@pytest.fixture
def store() -> EventStore:
    users = np.repeat(USERS, [len(h) for h in HISTORIES])
    return EventStore.from_columns(
        users=users,
        items=np.concatenate(HISTORIES).astype(np.int64),
        n_users=len(HISTORIES),
        n_items=SHAPE.n_items,
        types=np.arange(len(users)) % 2,
        weights=1.0 + np.arange(len(users)) % 3,
        type_names=("view", "buy"),
        times=10 * np.arange(len(users)) ** 3,
    )


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    fresh = initial_arrays(SHAPE, 0)
    return {n: (t + 0.3 * torch.randn(t.shape, generator=generator)).numpy() for n, t in fresh.items()}


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(SHAPE.n_items, SHAPE.dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def transformer(arrays: dict[str, np.ndarray]) -> Transformer:
    return shared_transformer(arrays, SHAPE)


def towers_of(seed: int = 3) -> Towers:
    generator = torch.Generator().manual_seed(seed)
    fresh = fresh_towers(initial_arrays(SHAPE, 0), len(HISTORIES))
    return {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in fresh.items()}


def test_the_transformer_is_the_released_one(arrays: dict[str, np.ndarray]) -> None:
    found = shared_transformer(arrays, SHAPE)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    for name, weight in found.state_dict().items():
        np.testing.assert_array_equal(weight.numpy(), arrays[f"transformer.{name}"])


def test_a_query_is_the_last_context_of_the_devices_own_latest_events(
    transformer: Transformer, vectors: torch.Tensor, store: EventStore
) -> None:
    together = query_vectors(transformer, vectors, store, USERS, None)
    for user in USERS[1:]:
        rows = np.arange(store.offsets[user], store.offsets[user + 1])[-SHAPE.window :]
        items = vectors[torch.as_tensor(store.items[rows], dtype=torch.long)][None]
        types = torch.as_tensor(store.types[rows], dtype=torch.long)[None]
        since = np.diff(store.times[rows], prepend=store.times[rows][:1])
        gaps = torch.tensor([[int(np.log2(1 + seconds)) for seconds in since]])
        expected = transformer(items, types, gaps, torch.ones(types.shape, dtype=torch.bool))[0, -1].numpy()
        np.testing.assert_allclose(together[user], expected, atol=1e-5)
        alone = query_vectors(transformer, vectors, store.only(int(user)), np.zeros(1, dtype=np.int64), None)
        np.testing.assert_allclose(alone[0], expected, atol=1e-5)
    assert np.isfinite(together).all(), "a device without events has a query too"


def test_each_query_passes_its_own_tower(transformer: Transformer, vectors: torch.Tensor, store: EventStore) -> None:
    towers = towers_of()
    users = np.array([4, 2])
    context = query_vectors(transformer, vectors, store, users, None)
    found = query_vectors(transformer, vectors, store, users, {n: t[users] for n, t in towers.items()})
    for row, user in enumerate(users):
        tower = UserTower(SHAPE.dim, SHAPE.user_dim, SHAPE.user_hidden)
        tower.load_state_dict({n.removeprefix("user."): t[user] for n, t in towers.items()})
        expected = tower(torch.as_tensor(context[row])[None, None])[0, 0].detach().numpy()
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
        assert np.abs(found[row] - context[row]).max() > 1e-3


def test_fresh_towers_are_the_identity_and_hold_private_weights_alone(
    transformer: Transformer, vectors: torch.Tensor, store: EventStore
) -> None:
    towers = fresh_towers(initial_arrays(SHAPE, 0), len(HISTORIES))
    assert towers and all(n.startswith("user.") and len(t) == len(HISTORIES) for n, t in towers.items())
    with_towers = query_vectors(transformer, vectors, store, USERS, towers)
    np.testing.assert_array_equal(with_towers, query_vectors(transformer, vectors, store, USERS, None))
    towers["user.out.weight"][0] += 1.0
    assert not towers["user.out.weight"][1].any(), "the copies share no memory"


def tuned(
    towers: Towers,
    transformer: Transformer,
    vectors: torch.Tensor,
    store: EventStore,
    users: np.ndarray,
    **options: float,
) -> Towers:
    config = PersonalConfig.model_validate({"steps": 20, "learning_rate": 0.05, "weight_decay": 0.0} | options)
    rows = {n: t[users] for n, t in towers.items()}
    return tune_towers(rows, transformer, vectors, store, users, SHAPE, config, 7)


def test_tuning_lowers_a_devices_own_loss(transformer: Transformer, vectors: torch.Tensor, store: EventStore) -> None:
    def loss(towers: Towers, user: int) -> float:
        """Return the full-softmax loss of the device's last event, given the ones before."""
        before = store.select(np.arange(store.n_events) != store.offsets[user + 1] - 1)
        query = query_vectors(transformer, vectors, before, np.array([user]), {n: t[[user]] for n, t in towers.items()})
        scores = torch.as_tensor(query) @ vectors.T
        target = int(store.items[store.offsets[user + 1] - 1])
        return float(full_softmax(scores[None, :, target], scores[None])[0, 0])

    before = fresh_towers(initial_arrays(SHAPE, 0), len(HISTORIES))
    after = tuned(before, transformer, vectors, store, USERS)
    assert loss(after, 2) < loss(before, 2) - 0.1
    assert loss(after, 3) < loss(before, 3) - 0.1


def test_devices_do_not_influence_each_other(
    transformer: Transformer, vectors: torch.Tensor, store: EventStore
) -> None:
    towers = towers_of()
    together = tuned(towers, transformer, vectors, store, USERS)
    for user in USERS:
        alone = tuned(towers, transformer, vectors, store, USERS[[user]])
        for name in together:
            torch.testing.assert_close(alone[name][0], together[name][user], rtol=1e-4, atol=1e-5)


def test_no_steps_change_nothing_and_the_input_is_left_alone(
    transformer: Transformer, vectors: torch.Tensor, store: EventStore
) -> None:
    towers = towers_of()
    before = {n: t.clone() for n, t in towers.items()}
    for name, tower in tuned(towers, transformer, vectors, store, USERS, steps=0).items():
        assert torch.equal(tower, before[name])
    tuned(towers, transformer, vectors, store, USERS)
    assert all(torch.equal(t, before[n]) for n, t in towers.items())


def test_where_events_say_nothing_decay_leads_back_to_the_identity(
    transformer: Transformer, vectors: torch.Tensor, store: EventStore
) -> None:
    silent = np.array([0, 1])
    towers = towers_of()
    after = tuned(towers, transformer, vectors, store, silent, steps=50, weight_decay=1.0)
    for name, tower in after.items():
        assert torch.isfinite(tower).all()
        assert (tower.abs() <= 0.1 * towers[name][silent].abs() + 1e-6).all(), name
