"""Opacus per-sample gradients against one sample at a time, with the two traps that it does not see itself."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrecall.models.recall import RecallModel
from fedrecall.models.shape import ModelShape
from fedrecall.models.transformer import GAPS
from fedrecall.privacy.mechanisms.opacus_step import ClippedGradient
from fedrecall.protocol.errors import FedrecallError

SHAPE = ModelShape(
    n_items=20, n_features=3, n_types=2, dim=4, window=5, blocks=2, heads=2, hidden=6, user_dim=2, user_hidden=3
)
FREE = 1e30


class TableModel(nn.Module):
    """A recall model that looks its items up in one table, own items and negatives in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SHAPE.n_items, SHAPE.dim)
        self.core = RecallModel(SHAPE)

    def forward(self, items: Tensor, features: Tensor, **samples: Tensor) -> Tensor:
        rows, own = self.table(items), SHAPE.window + 1
        loss: Tensor = self.core(rows[:, :own], rows[:, own:], features[:, :own], features[:, own:], **samples)
        return loss


def trained_model() -> TableModel:
    torch.manual_seed(0)
    model = TableModel().double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


def batch(size: int) -> dict[str, Tensor]:
    """Return ``size`` samples; repeated items within a sample, negatives that are own items, and padding."""
    g = torch.Generator().manual_seed(size)
    own, negatives = SHAPE.window + 1, 7
    real = torch.arange(own) >= torch.randint(own - 1, (size, 1), generator=g)
    return {
        "items": torch.randint(SHAPE.n_items, (size, own + negatives), generator=g),
        "features": torch.randint(2, (size, own + negatives, SHAPE.n_features), generator=g).double(),
        "slots": torch.randint(own, (size, own), generator=g),
        "real": real,
        "types": torch.randint(SHAPE.n_types, (size, own), generator=g),
        "gaps": torch.randint(GAPS, (size, own), generator=g),
        "loss_weights": torch.rand(size, own - 1, generator=g, dtype=torch.float64) * real[:, :-1],
        "masked": torch.rand(size, negatives, generator=g) < 0.2,
    }


def one_at_a_time(module: nn.Module, inputs: Mapping[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Return each sample's gradient by name, from a backward pass of its own."""
    found = []
    for i in range(size):
        module.zero_grad(set_to_none=True)
        module(**{n: t[i : i + 1] for n, t in inputs.items()}).sum().backward()
        found.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
        )
    module.zero_grad(set_to_none=True)
    return found


def clipped_sum(gradients: list[dict[str, Tensor]], clip_norm: float) -> dict[str, Tensor]:
    total = {n: torch.zeros_like(g, dtype=torch.float64) for n, g in gradients[0].items()}
    for gradient in gradients:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        for name, g in gradient.items():
            total[name] += (min(1.0, clip_norm / norm) if norm else 1.0) * g
    return total


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


# A batch as large as the window (or window + 1) is where a broadcast embedding goes wrong.
@pytest.mark.parametrize("size", [1, 2, SHAPE.window, SHAPE.window + 1, 11])
@pytest.mark.parametrize("clip_norm", [FREE, 1.0, 1e-3])
def test_every_parameter_of_the_whole_model_is_clipped_by_sample(size: int, clip_norm: float) -> None:
    model, inputs = trained_model(), batch(size)
    names = [n for n, _ in model.named_parameters()]
    gradients = one_at_a_time(model, inputs, size)
    assert all(max(float(g[n].abs().max()) for g in gradients) > 0 for n in names), "every parameter is tested"
    expected = clipped_sum(gradients, clip_norm)
    step = ClippedGradient(model, names)
    step(inputs, 3 * clip_norm)
    for _ in range(2):  # no state stays behind
        found, norms = step(inputs, clip_norm)
        assert_same(found, expected)
        exact = [torch.sqrt(sum((g.square().sum() for g in one.values()), torch.zeros(()))) for one in gradients]
        torch.testing.assert_close(norms, torch.stack(exact).to(norms), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sample", range(SHAPE.window))
def test_each_sample_alone(sample: int) -> None:
    model, inputs = trained_model(), batch(SHAPE.window)
    expected = one_at_a_time(model, inputs, SHAPE.window)[sample]
    inputs["loss_weights"] = inputs["loss_weights"] * (torch.arange(SHAPE.window) == sample)[:, None]
    assert_same(ClippedGradient(model, list(expected))(inputs, FREE)[0], expected)


class Broadcast(nn.Module):
    """The first trap: a position embedding looked up once and broadcast over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = (x * self.position(torch.arange(5))).tanh().sum(dim=(1, 2))
        return loss


class Tied(nn.Module):
    """The second trap: an embedding's weight used outside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = (self.table(x) @ self.table.weight.T).logsumexp(dim=-1).sum(dim=1)
        return loss


@pytest.mark.parametrize(
    ("make", "inputs"),
    [(Broadcast, torch.linspace(-1, 1, 50).view(5, 5, 2)), (Tied, torch.arange(15).view(5, 3) % 4)],
)
def test_the_comparison_sees_both_traps(make: Callable[[], nn.Module], inputs: Tensor) -> None:
    torch.manual_seed(1)
    module = make()
    gradients = one_at_a_time(module, {"x": inputs}, 5)
    expected = clipped_sum(gradients, FREE)
    found, _ = ClippedGradient(module, list(expected))({"x": inputs}, FREE)
    with pytest.raises(AssertionError):
        assert_same(found, expected)


class Line(nn.Module):
    """Loss = scale * (weight . x) a sample, so that its gradient is scale * x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(3, 1, bias=False)
        self.private = nn.Linear(3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = (self.weight(x) + self.private(x)).squeeze(-1)
        return loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_an_invalid_sample_contributes_zero_and_the_others_all(bad: float) -> None:
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, bad, bad], [0.0, 0.0, 0.5]])
    sums, norms = ClippedGradient(Line(), ["weight.weight"])({"x": x}, 1.0)
    found = sums["weight.weight"]
    expected = torch.tensor([[0.6, 0.8, 0.5]], dtype=torch.float64)
    if bad == 1e38:  # no square of it fits into a float32
        expected += torch.tensor([[0.0, 0.5**0.5, 0.5**0.5]], dtype=torch.float64)
    else:
        assert torch.equal(norms, torch.tensor([5.0, torch.inf, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 50.0])
def test_the_bound_holds_for_each_sample(scale: float, clip_norm: float) -> None:
    generator = torch.Generator().manual_seed(0)
    step = ClippedGradient(Line(), ["weight.weight"])
    for _ in range(20):
        x = scale * torch.randn(1, 3, generator=generator)
        found = step({"x": x}, clip_norm)[0]["weight.weight"]
        assert float(found.norm()) <= clip_norm * (1 + 1e-12)
        if float(x.norm()) < clip_norm:
            torch.testing.assert_close(found, x.double(), rtol=0, atol=0)


class Wide(nn.Module):
    """One gradient: the input itself, as long as it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rows = nn.Linear(size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x)[:, 0]


@pytest.mark.parametrize("size", [1_000, 74_000, 500_000])
@pytest.mark.parametrize(("large", "small"), [(8, 1.7e-4), (64, 1.7e-4), (1, 3e-5), (16, 2.4e-4)])
def test_a_few_large_numbers_do_not_hide_many_small_ones(size: int, large: int, small: float) -> None:
    """In the precision of the gradient the norm of the small ones is lost, and the clip lets more through."""
    x = np.full((2, size), small, dtype=np.float32)
    x[:, :large] = 1.0
    found = ClippedGradient(Wide(size), ["rows.weight"])({"x": torch.from_numpy(x[:1])}, 0.05)[0]["rows.weight"]
    assert float(torch.linalg.vector_norm(found)) <= 0.05 * (1 + 1e-9)
    both = ClippedGradient(Wide(size), ["rows.weight"])({"x": torch.from_numpy(x)}, 0.05)[0]["rows.weight"]
    torch.testing.assert_close(both, 2 * found, rtol=1e-12, atol=0)


def test_the_clip_covers_all_trained_parameters_jointly_and_others_keep_their_plain_gradient() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    step = ClippedGradient(Line(), ["weight.weight", "private.weight"])
    both, _ = step({"x": x}, 1.0)
    joint = torch.sqrt(sum(g.square().sum() for g in step({"x": x[:1]}, 1.0)[0].values()))
    assert float(joint) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(both["weight.weight"], both["private.weight"])
    line = Line()
    ClippedGradient(line, ["weight.weight"])({"x": x}, 1.0)
    torch.testing.assert_close(line.private.weight.grad, x.sum(dim=0, keepdim=True))
    assert not hasattr(line.private.weight, "grad_sample") or line.private.weight.grad_sample is None


def test_plain_work_has_ordinary_gradients_and_leaves_the_clipped_step_alone() -> None:
    line, x = Line(), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    step = ClippedGradient(line, ["weight.weight"])
    expected = step({"x": x}, 1.0)[0]["weight.weight"]
    with step.plain():
        line(x).sum().backward()
    torch.testing.assert_close(line.weight.weight.grad, x.sum(dim=0, keepdim=True))
    torch.testing.assert_close(step({"x": x}, 1.0)[0]["weight.weight"], expected)


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(FedrecallError, match=r"no parameters \['nowhere'\]"):
        ClippedGradient(Line(), ["weight.weight", "nowhere"])
