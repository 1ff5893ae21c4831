from dataclasses import replace

import pytest
import torch

from fedrecall.models.recall import ITEM_ID, RecallModel, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.models.towers import ItemTower, UserTower
from fedrecall.protocol.allow_list import PRIVATE_PREFIXES, SHARED_PREFIXES, shared_names
from fedrecall.protocol.errors import FedrecallError

SHAPE = ModelShape(
    n_items=9, n_features=4, n_types=2, dim=6, window=5, blocks=1, heads=2, hidden=8, user_dim=2, user_hidden=3
)


def test_a_user_tower_starts_as_the_identity_and_then_learns() -> None:
    tower = UserTower(6, 2, 3)
    context = torch.randn(4, 5, 6, requires_grad=True)
    query = tower(context)
    assert torch.equal(query, context)
    query.square().sum().backward()
    assert tower.out.weight.grad is not None and tower.out.weight.grad.abs().max() > 0
    with torch.no_grad():
        tower.out.weight += 1.0
    moved = tower(context)
    assert not torch.equal(moved, context)
    with torch.no_grad():
        tower.vector.weight += 1.0
    assert not torch.equal(tower(context), moved), "the private vector is read"


def test_an_item_is_its_row_plus_its_features() -> None:
    tower = ItemTower(SHAPE)
    rows, features = torch.randn(1, 9, 6), torch.randint(2, (1, 9, 4)).float()
    assert torch.equal(tower(rows, features), rows), "features start at zero"
    assert tower.features is not None
    with torch.no_grad():
        tower.features.weight.copy_(torch.randn(6, 4))
    for i in range(9):
        expected = rows[0, i] + sum(features[0, i, f] * tower.features.weight[:, f] for f in range(4))
        torch.testing.assert_close(tower(rows, features)[0, i], expected)
    cold = tower(torch.zeros(1, 9, 6), features)
    torch.testing.assert_close(cold, features @ tower.features.weight.T)


def test_initial_arrays_are_a_function_of_shape_and_seed_alone() -> None:
    one = initial_arrays(SHAPE, 7)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = initial_arrays(SHAPE, 7)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = initial_arrays(SHAPE, 8)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert one[ITEM_ID].shape == (9, 6) and not one[ITEM_ID].any()


def test_every_weight_is_on_exactly_one_list() -> None:
    names = set(initial_arrays(SHAPE, 0))
    assert names == {ITEM_ID, *RecallModel(SHAPE).state_dict()}
    for name in names:
        assert name.startswith(SHARED_PREFIXES) != name.startswith(PRIVATE_PREFIXES), name
    assert set(shared_names(names)) == {name for name in names if not name.startswith("user.")}
    assert any(name.startswith("user.") for name in names)


@pytest.mark.parametrize("name", ["users.vector", "head.weight", "", "Item.id", "rows.weight"])
def test_a_weight_on_neither_list_is_an_error(name: str) -> None:
    with pytest.raises(FedrecallError, match="neither list"):
        shared_names(["item.id.weight", name])


def test_a_model_without_features_has_none() -> None:
    bare = initial_arrays(replace(SHAPE, n_features=0), 0)
    assert "item.features.weight" not in bare
