"""Opacus per-sample clipping, for any module. The one file that imports Opacus.

Opacus computes the gradient of each sample, which its optimiser clips here in double precision: its own clip works out
norms in the module's, where thousands of small numbers beside a few large ones are lost, and lets through more than the
bound (0.5 % more of three million numbers). Noise is added by whoever the plan says, to the dense
sum, by ``fedrecall.privacy.mechanisms.mechanisms.gaussian_sum``: Opacus would noise only the rows of the device's local
item table and from a generator that is not cryptographic (docs/privacy.md, rules 4 and 9).
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedrecall.privacy.mechanisms.clipping import clip_factors, sample_norms
from fedrecall.protocol.errors import FedrecallError


class ClippedGradient:
    """Computes the sum of clipped per-sample gradients of ``module``, whose forward returns a loss a sample.

    Args:
        module: takes batch-first tensors and returns losses [batch]; wrapped in place, once.
        trained: names of the parameters that the clip covers, jointly. Every other parameter that needs a gradient
            gets its plain one, which must stay where it is.
    """

    def __init__(self, module: nn.Module, trained: Sequence[str]) -> None:
        """Wrap ``module``; raises FedrecallError for a name it does not have."""
        parameters = dict(module.named_parameters())
        if missing := sorted(set(trained) - set(parameters)):
            raise FedrecallError(f"the module has no parameters {missing}; it has {sorted(parameters)}")
        # Any: Opacus hangs attributes on parameters that torch does not know.
        self._trained: dict[str, Any] = {name: parameters[name] for name in trained}
        self._others: list[Any] = [p for name, p in parameters.items() if name not in self._trained and p.requires_grad]
        self._module = GradSampleModule(module, batch_first=True, loss_reduction="sum")
        self._optimiser = _DoubleClip(
            torch.optim.SGD(list(self._trained.values()), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=1,
            loss_reduction="sum",
        )

    def __call__(self, inputs: Mapping[str, Any], clip_norm: float) -> tuple[dict[str, Tensor], Tensor]:
        """Return the clipped sum by name, and each sample's norm before the clip: private, infinite where invalid.

        Both in float64, and no sample adds more than ``clip_norm``.

        A sample whose gradient is not finite contributes zero (rule 5). The other parameters' ``grad`` holds their
        plain gradient afterwards.

        Args:
            inputs: of the module, by name.
            clip_norm: L2 bound of each sample's gradient over all ``trained`` parameters.
        """
        self._module.zero_grad(set_to_none=True)
        with _integer_inputs():
            self._module(**inputs).sum().backward()
        norms = self._norms()
        self._optimiser.max_grad_norm = clip_norm
        self._optimiser.clip_and_accumulate()
        sums = {name: p.summed_grad.detach().clone() for name, p in self._trained.items()}
        self._optimiser.zero_grad(set_to_none=True)
        for parameter in self._others:
            parameter.grad_sample = None
        return sums, norms

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Run the module without per-sample gradients, for local training that a gate clips as a whole."""
        self._module.disable_hooks()
        try:
            with _integer_inputs():
                yield
        finally:
            self._module.enable_hooks()

    def _norms(self) -> Tensor:
        """Return each sample's norm over all parameters together; zero the gradients of those that are not finite."""
        gradients = [p.grad_sample for p in self._trained.values()]
        norms = sample_norms(gradients)
        bad = ~torch.isfinite(norms)
        if bool(bad.any()):
            for gradient in gradients:
                gradient[bad] = 0.0
        return torch.where(bad, torch.inf, norms)


class _DoubleClip(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with its clip in float64."""

    def clip_and_accumulate(self) -> None:
        """Put the sum of the clipped per-sample gradients into each parameter's ``summed_grad``, in float64."""
        factors = clip_factors(sample_norms(self.grad_samples), self.max_grad_norm)
        for parameter, gradient in zip(self.params, self.grad_samples, strict=True):
            # One sample at a time: all of them in float64 would double what a step takes.
            total = torch.zeros(gradient.shape[1:], dtype=torch.float64)
            for factor, one in zip(factors, gradient, strict=True):
                total += factor * one.to(torch.float64)
            parameter.summed_grad = total


@contextmanager
def _integer_inputs() -> Iterator[None]:
    """Silence one warning: item numbers need no gradient, which torch reports from every hook on an embedding."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        yield
