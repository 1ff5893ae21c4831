"""``fedrecall doctor`` says whether this machine is ready."""

import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.protocol.errors import FedrecallError

_PACKAGES = {
    "torch": (2, 6),
    "opacus": (1, 6),
    "numpy": (1, 26),
    "faiss-cpu": (1, 15),
    "dp-accounting": (0, 6),
    "safetensors": (0, 5),
    "pydantic": (2, 9),
    "pyarrow": (20,),
}
_MEMORY_GB = 3.0
_DISK_GB = 1.0

Check = tuple[str, str, str]  # status (ok, warn or fail), what was found, remedy


def doctor(format: FormatOption = "text") -> None:
    """Check versions, threads, memory, disk and cache, and try the parts that privacy and recall stand on."""
    output = Output(format)
    with output.working() as progress:
        rows = examine(progress)
    healthy = all(row["status"] != "fail" for row in rows)
    head = ["check", "status", "found", "remedy"]
    said = "This machine is ready." if healthy else "This machine is not ready: see the rows that fail."
    output.answer(
        {"ready": healthy, "checks": rows},
        table("doctor", head, [[row[key] for key in head] for row in rows]),
        said,
    )
    if not healthy:
        raise FedrecallError("a check failed; its remedy stands beside it")


def examine(progress: Callable[[str, int, int], None]) -> list[dict[str, Any]]:
    """Return one row a check: ``check``, ``status``, ``found``, ``remedy``; one that raises has failed."""
    checks: dict[str, Callable[[], Check]] = {
        "python": _python,
        **{name: _package(name, least) for name, least in _PACKAGES.items()},
        "threads": _threads,
        "memory": _memory,
        "disk": _disk,
        "cache": _cache,
        "torch device": _device,
        "self-test: accountant": _accountant,
        "self-test: noise": _noise,
        "self-test: per-sample clip": _clip,
        "self-test: item table and index": _index,
    }
    rows = []
    for done, (name, check) in enumerate(checks.items()):
        progress("doctor", done, len(checks))
        try:
            status, found, remedy = check()
        except Exception as error:
            status, found = "fail", f"{type(error).__name__}: {error}"
            remedy = "install again: make setup"
        rows.append({"check": name, "status": status, "found": found, "remedy": remedy})
    progress("doctor", len(checks), len(checks))
    return rows


def _python() -> Check:
    return "ok", f"{platform.python_implementation()} {platform.python_version()}", ""


def _package(name: str, least: tuple[int, ...]) -> Callable[[], Check]:
    wanted = ".".join(map(str, least))

    def check() -> Check:
        try:
            found = version(name)
        except PackageNotFoundError:
            return "fail", "absent", f"install {name}>={wanted}: make setup"
        parts = tuple(int(part) for part in found.split("+")[0].split(".")[: len(least)] if part.isdigit())
        if parts < least:
            return "fail", found, f"install {name}>={wanted}: make setup"
        return "ok", found, ""

    return check


def _threads() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores} cores" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    if limit and limit.isdigit() and int(limit) > cores:
        return "warn", found, f"more threads than cores slow training down: set OMP_NUM_THREADS={cores}"
    return "ok", found, ""


def _memory() -> Check:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError, AttributeError):
        return "warn", "unknown", f"see that {_MEMORY_GB:.0f} GB are free"
    found = f"{free:.1f} GB free"
    return ("ok", found, "") if free >= _MEMORY_GB else ("warn", found, f"free {_MEMORY_GB:.0f} GB for ml-1m")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    found = f"{free:.1f} GB free in {Path.cwd()}"
    return ("ok", found, "") if free >= _DISK_GB else ("warn", found, "free some space, or run elsewhere")


def _cache() -> Check:
    from fedrecall.simulations.data.places import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return "fail", f"{folder}: {error.strerror}", "set FEDRECALL_CACHE to a folder that can be written"
    return "ok", f"{folder} can be written", ""


def _device() -> Check:
    import torch

    found = f"cpu, {torch.get_num_threads()} threads"
    return (
        "ok",
        found + (f"; {torch.cuda.get_device_name(0)} is not used" if torch.cuda.is_available() else ""),
        "",
    )


def _accountant() -> Check:
    """Try a published anchor: q 0.01, sigma 1, 1000 steps, delta 1e-5 is 1.8282 by PLD (docs/privacy.md, anchors)."""
    from fedrecall.privacy.accounting.accounting import account_adversary
    from fedrecall.protocol.plan import Mechanism, Plan

    rounds = Mechanism(
        name="rounds", sampling="poisson", sample_rate=0.01, noise_multiplier=1.0, clip_norm=1.0, steps=1000
    )
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=100, mechanisms=(rounds,))
    epsilon = account_adversary(plan, "released-model").epsilon
    found = f"an anchor of 1.8282 comes out as {epsilon:.4f}" if epsilon is not None else "no epsilon"
    if epsilon is None or abs(epsilon - 1.8282) > 1e-3:
        return "fail", found, "do not trust any epsilon of this machine; install again: make setup"
    return "ok", found, ""


def _noise() -> Check:
    """Measure the deviation of 100,000 secret normals: outside [0.989, 1.011] once in a million times."""
    import numpy as np

    from fedrecall.privacy.mechanisms.noise import SecureNoise

    measured = float(np.std(SecureNoise().normal((100_000,), 1.0)))
    found = f"planned deviation 1, measured {measured:.4f}"
    if not 0.989 <= measured <= 1.011:
        return "fail", found, "do not train under a privacy plan on this machine; install again: make setup"
    return "ok", found, ""


def _clip() -> Check:
    """Compare Opacus' clipped sum of a small module with one sample at a time by autograd."""
    import torch
    from torch import Tensor, nn

    from fedrecall.privacy.mechanisms.opacus_step import ClippedGradient

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            self.items, self.head = nn.Embedding(7, 4), nn.Linear(4, 1)
            for p in self.parameters():
                p.data = torch.randn(p.shape, generator=generator)

        def forward(self, ids: Tensor) -> Tensor:
            loss: Tensor = self.head(torch.tanh(self.items(ids)).sum(1)).squeeze(1) ** 2
            return loss

    ids, clip = torch.tensor([[0, 1, 1], [2, 6, 0], [3, 3, 3], [5, 4, 1]]), 0.5
    toy = Toy()
    names = [name for name, _ in toy.named_parameters()]
    expected = [torch.zeros_like(p) for p in toy.parameters()]
    for row in ids:
        gradient = torch.autograd.grad(toy(row[None]).sum(), list(toy.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradient) + torch.zeros(()))
        for total, g in zip(expected, gradient, strict=True):
            total += g * torch.clamp(clip / norm, max=1.0)
    with warnings.catch_warnings():
        # Identifiers have no gradient, which torch remarks upon.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        sums, _ = ClippedGradient(toy, names)({"ids": ids}, clip)
    worst = max(float((sums[n] - e).abs().max()) for n, e in zip(names, expected, strict=True))
    found = f"differs from one sample at a time by {worst:.1e}"
    if worst > 1e-5:
        return "fail", found, "do not train under a privacy plan on this machine; install again: make setup"
    return "ok", found, ""


def _index() -> Check:
    """Search an item table and its flat index, and compare both with a plain product."""
    import numpy as np

    from fedrecall.protocol.item_table import ItemTable
    from fedrecall.protocol.randomness import public_rng
    from fedrecall.server.recall.index import build_index, recall_against_exact

    vectors = public_rng(0, "doctor").standard_normal((200, 16)).astype(np.float32)
    items = ItemTable.from_vectors(vectors, [str(i) for i in range(200)])
    queries = vectors[:20]
    best, _ = items.search(queries, 1)
    same = bool(np.array_equal(best[:, 0], np.argmax(queries @ items.vectors().T, axis=1)))
    recall = recall_against_exact(build_index(items, "flat"), items, queries, k=10)
    found = f"exact search {'agrees' if same else 'differs'}, flat index finds {recall:.0%} of it"
    if not same or recall < 0.99:
        return "fail", found, "install faiss-cpu and numpy again: make setup"
    return "ok", found, ""
