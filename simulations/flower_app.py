"""What ``flwr run`` starts: ``fedrecall run`` on Flower's nodes, with the settings of its run configuration."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrecall.simulations.config import load_config
from fedrecall.simulations.runs.run import run
from fedrecall.simulations.training.collect import Collect
from fedrecall.simulations.training.flower import client, collector
from fedrecall.simulations.training.world import World

__all__ = ["client", "server"]  # Flower looks for both by name in this file

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Do what ``fedrecall run`` does, on the nodes of ``flwr run``; its run configuration names the settings."""
    asked = {key: str(value) for key, value in context.run_config.items()}
    config = load_config(
        None,
        asked["preset"],
        [setting.strip() for setting in asked["settings"].split(";") if setting.strip()],
        dataset=asked["dataset"],
        data_path=Path(asked["data-path"]) if asked["data-path"] else None,
        protocol=asked["protocol"],
        seed=int(asked["seed"]),
    )

    @contextmanager
    def engine(world: World, out: Path) -> Iterator[Collect]:
        yield collector(world, out, grid, single=False)

    run(config, out=Path(asked["out"]) if asked["out"] else None, engine=engine, progress=_logged)


def _logged(stage: str, done: int, total: int) -> None:
    logging.getLogger("fedrecall").info("%s: %d of %d", stage, done, total)
