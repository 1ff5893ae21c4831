"""A finished run in Python: its figures, its privacy, its item table, and what its devices would recommend."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from fedrecall.protocol.item_table import ItemTable
    from fedrecall.simulations.runs.inspect import Finished


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished run. Made by ``fedrecall.run`` and ``fedrecall.load_run``.

    Attributes:
        folder: where all of it is: ``report.html`` for people, ``run.json`` for programs, the released files.
        result: the content of ``run.json``.
        data_path: where its data lie now, if they were moved.
    """

    folder: Path
    result: Mapping[str, Any]
    data_path: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on the test events: ``recall@10`` and the like."""
        return dict(self.result["metrics"])

    @property
    def privacy(self) -> list[dict[str, Any]]:
        """One row an adversary: ``name``, ``unit``, ``epsilon`` (``None``: no bound), ``delta``, what they rest on."""
        return [{"unit": self.result["privacy"]["unit"], **row} for row in self.result["privacy"]["adversaries"]]

    @cached_property
    def table(self) -> "ItemTable":
        """The released item table, checked against the manifest: ``ids``, ``vectors()``, ``search(queries, k)``."""
        from fedrecall.server.recall.release import load_release

        return load_release(self.folder).items

    def frame(self, name: str) -> "pa.Table":
        """Return results as an Arrow table, which pandas and polars read.

        Args:
            name: ``quality``: a row each for this run and its baselines; ``privacy``: a row an adversary; ``history``:
                a row a validation during training; ``people``: a row a tested user.

        Raises:
            UsageError: another name; or ``people`` of a copy without ``private/``.
        """
        from fedrecall.protocol.errors import UsageError
        from fedrecall.simulations.results import tables

        if name == "people":
            return tables.people(self.folder, self._opened.dataset.user_ids)
        made = {"quality": tables.quality, "privacy": tables.privacy, "history": tables.history}
        if name not in made:
            raise UsageError(f"frame is {name!r}: choose quality, privacy, history or people")
        return made[name](self.result)

    def recommend(self, user: str | int, k: int = 10) -> list[dict[str, Any]]:
        """Return what the simulated device of ``user`` would recommend: ``item``, ``title``, ``score``, best first.

        Its own are left out, unless the run recommends repeats. Raises UsageError for a user who is not in the data;
        nobody else is named.
        """
        from fedrecall.simulations.runs.inspect import recommended

        found: list[dict[str, Any]] = recommended(self._opened, str(user), k)["items"]
        return found

    def recommend_all(
        self, k: int = 10, *, out: Path | str | None = None, held_out: Path | str | None = None
    ) -> "pa.Table":
        """Return every device's list as an Arrow table: ``user``, ``place``, ``item``, ``title``, ``score``.

        Args:
            k: how many items a device.
            out: a file to write it into as well: ``.parquet``, ``.trec`` (a run of trec_eval) or ``.json`` (of ranx).
            held_out: a file for what the test hid, to measure the lists by.
        """
        from fedrecall.simulations.results import lists

        for path in (out, held_out):
            if path is not None:
                lists.check_ending(Path(path))
        found = lists.recommend_all(self._opened, k, _silent)
        if out is not None:
            lists.write_lists(found, Path(out))
        if held_out is not None:
            lists.write_held_out(lists.held_out(self._opened), Path(held_out))
        return found

    def picture(self, path: Path | str, metric: str = "recall@10") -> None:
        """Draw ``metric`` of this run beside its baselines into an SVG file; UsageError for an unknown metric."""
        from fedrecall.protocol.files import write_atomic
        from fedrecall.simulations.report.page import baseline_svg

        write_atomic(Path(path), baseline_svg(self.result, metric).encode())

    @cached_property
    def _opened(self) -> "Finished":
        from fedrecall.simulations.runs.inspect import open_finished

        return open_finished(self.folder, _silent, data_path=self.data_path)


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing of how far it is."""
