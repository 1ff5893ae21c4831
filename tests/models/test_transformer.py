import numpy as np
import pytest
import torch

from fedrecall.models.shape import ModelShape
from fedrecall.models.transformer import GAPS, Transformer

SHAPE = ModelShape(
    n_items=9, n_features=0, n_types=3, dim=6, window=7, blocks=2, heads=2, hidden=8, user_dim=2, user_hidden=3
)


@pytest.fixture
def trained() -> Transformer:
    """Return a transformer in which no weight is zero."""
    torch.manual_seed(0)
    model = Transformer(SHAPE).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(batch: int = 3, length: int = SHAPE.window) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(batch, length, SHAPE.dim, generator=generator, dtype=torch.float64)
    types = torch.randint(SHAPE.n_types, (batch, length), generator=generator)
    gaps = torch.randint(GAPS, (batch, length), generator=generator)
    return items, types, gaps, torch.ones(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("future", range(1, SHAPE.window))
def test_what_comes_later_changes_nothing_earlier(trained: Transformer, future: int) -> None:
    items, types, gaps, real = inputs()
    before = trained(items, types, gaps, real)
    items[:, future:] = 100 * torch.randn_like(items[:, future:])
    types[:, future:] = (types[:, future:] + 1) % SHAPE.n_types
    gaps[:, future:] = (gaps[:, future:] + 1) % GAPS
    after = trained(items, types, gaps, real)
    torch.testing.assert_close(after[:, :future], before[:, :future], rtol=0, atol=0)
    assert (after[:, future:] - before[:, future:]).abs().amin() > 1e-6


def test_every_event_so_far_is_read(trained: Transformer) -> None:
    items, types, gaps, real = inputs(batch=1)
    items.requires_grad_()
    for t in range(SHAPE.window):
        (gradient,) = torch.autograd.grad(trained(items, types, gaps, real)[0, t].square().sum(), items)
        read = gradient[0].abs().amax(dim=1) > 0
        assert read.tolist() == [s <= t for s in range(SHAPE.window)]


@pytest.mark.parametrize("events", range(1, SHAPE.window))
def test_padding_changes_nothing(trained: Transformer, events: int) -> None:
    items, types, gaps, real = inputs()
    bare = trained(items[:, -events:], types[:, -events:], gaps[:, -events:], real[:, -events:])
    for padded in range(events, SHAPE.window + 1):
        real[:] = False
        real[:, -events:] = True
        items[:, :-events] = 1e3 * torch.randn_like(items[:, :-events])
        part = slice(SHAPE.window - padded, None)
        context = trained(items[:, part], types[:, part], gaps[:, part], real[:, part])
        torch.testing.assert_close(context[:, -events:], bare, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("train", [True, False])
def test_rows_of_padding_alone_are_finite_and_so_are_their_gradients(
    trained: Transformer, dtype: torch.dtype, train: bool
) -> None:
    trained = trained.to(dtype).train(train)
    items, types, gaps, real = inputs()
    real[0] = False
    real[1, :-1] = False
    context = trained(items.to(dtype) * 0, types, gaps, real)
    assert torch.isfinite(context).all()
    context.square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in trained.parameters())


def test_an_untrained_transformer_is_the_mean_of_two_empty_events_and_of_events_weighted_by_age() -> None:
    torch.manual_seed(3)
    items, types, gaps, real = inputs()
    real[0, :4] = False
    found = Transformer(SHAPE).double()(items, types, gaps, real).detach().numpy()
    for row in range(len(items)):
        for t in range(SHAPE.window):
            seen = [s for s in range(t + 1) if real[row, s] or s == t]
            age = np.array([0.85 ** (t - s) for s in seen])
            expected = age @ items[row, seen].numpy() / (age.sum() + 2)
            np.testing.assert_allclose(found[row, t], expected, rtol=0, atol=1e-6)


def test_types_gaps_and_places_are_read_once_trained(trained: Transformer) -> None:
    items, types, gaps, real = inputs()
    before = trained(items, types, gaps, real)
    assert (trained(items, (types + 1) % SHAPE.n_types, gaps, real) - before).abs().amin() > 1e-6
    assert (trained(items, types, (gaps + 1) % GAPS, real) - before).abs().amin() > 1e-6
    same = items[:, :1].expand(-1, SHAPE.window, -1)
    context = trained(same, types * 0, gaps * 0, real)
    assert (context[:, 1:] - context[:, :-1]).abs().amax(dim=2).min() > 1e-6
