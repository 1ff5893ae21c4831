"""Running, loading and auditing from Python: what ``fedrecall run`` and ``fedrecall audit`` do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrecall.api.results import Run
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.config import DataConfig, RunConfig, changed, load_config
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.runs.folder import choose_folder, resumed_settings
from fedrecall.simulations.tracking.callback import Callback

Progress = Callable[[str, int, int], None]


def run(
    data: Dataset | str | None = None,
    *,
    preset: str | None = None,
    config: RunConfig | Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data_path: Path | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Run:
    """Train over private simulated devices, build the recall index, evaluate, and write the report.

    Args:
        data: what ``load_dataset`` or ``dataset_from_frame`` returned, or the name of a data set; that of the
            configuration if ``None``. A data set in memory is kept in the run's ``private/``.
        preset: settings to start from; ``user-eps8`` where neither it nor ``config`` is given.
        config: settings, or a TOML file of them.
        settings: single settings by their dotted names: ``{"privacy.epsilon": 4}``; ``docs/settings.md`` lists them.
        seed: of everything random; the run is a simulation.
        data_path: the folder with the files of a known data set.
        out: the run's folder; a fresh one under ``runs/`` if ``None``.
        resume: go on where the run in ``out``, else the newest, stopped; with no settings it has those it began with.
        callbacks: told how it goes, such as ``TensorBoard``; none by default, for such a log is outside epsilon.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: an unknown setting, or one out of bounds.
        DataError: the data cannot be read, or are not enough.
        UsageError: ``out`` is in use, or settings of how to read data beside data that were read already.
    """
    from fedrecall.simulations.runs.run import run as run_all

    given = {} if settings is None else dict(settings)
    if seed is not None:
        given["seed"] = seed
    if data_path is not None:
        given["data.path"] = Path(data_path)
    if data is not None:
        given["data.name"] = data if isinstance(data, str) else data.name
    folder = None if out is None else Path(out)
    if isinstance(config, RunConfig):
        if preset is not None:
            raise UsageError(f"preset is {preset!r} beside a whole configuration: give one of them")
        chosen = changed(config, given)
    else:
        path = None if config is None else Path(config)
        if resume:
            chosen = resumed_settings(folder, path, preset, settings=given)
        else:
            chosen = load_config(path, preset, settings=given)
    dataset = None if data is None or isinstance(data, str) else data
    if dataset is not None:
        _check_read(chosen.data)
    place = choose_folder(chosen, folder, resume=resume)
    result = run_all(
        chosen, out=place, resume=resume, progress=progress or _silent, dataset=dataset, callbacks=callbacks
    )
    return Run(folder=place, result=result)


def load_run(folder: Path | str, *, data_path: Path | str | None = None) -> Run:
    """Open a finished run's folder; ``data_path`` says where its data lie, if they were moved.

    Raises:
        UsageError: there is no finished run in it.
        CorruptArtefact: its ``run.json`` cannot be read.
    """
    from fedrecall.simulations.report.compare import read_run

    return Run(
        folder=Path(folder), result=read_run(Path(folder)), data_path=None if data_path is None else Path(data_path)
    )


def audit(
    run: Run | Path | str,
    *,
    deep: bool = False,
    attach: bool = False,
    data_path: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try to break what a finished run claims; return what ``audit.json`` holds: ``verdict``, ``broken``, ``attempts``.

    Args:
        run: a run, or its folder; ``audit.html`` is written there.
        deep: all rounds, more canaries, an hour of attacks.
        attach: the folder may come from elsewhere: audit what can be without its data.
        data_path: where the data lie now, if they were moved.
        progress: called with (stage, done, total).

    Raises:
        UsageError: there is no finished run, or its data are missing.
        CorruptArtefact: the configuration is not the run's.
    """
    from fedrecall.simulations.audit.run_audit import audit_run

    folder, moved = (run.folder, run.data_path) if isinstance(run, Run) else (Path(run), None)
    where = moved if data_path is None else Path(data_path)
    return audit_run(folder, attach=attach, deep=deep, data_path=where, progress=progress or _silent)


def _check_read(data: DataConfig) -> None:
    """Raise UsageError where settings say how to read data that were read already."""
    usual = DataConfig(name=data.name, protocol=data.protocol, repeats=data.repeats)
    beside = [f"data.{name}" for name in DataConfig.model_fields if getattr(data, name) != getattr(usual, name)]
    if beside:
        raise UsageError(
            f"{', '.join(beside)} beside data that were read already: say it to load_dataset or dataset_from_frame"
        )


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing of how far it is."""
