"""The page of every setting, drawn from the configuration itself: ``python -m tests.settings_page`` writes it."""

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedrecall.simulations.config import RunConfig, load_config
from fedrecall.simulations.presets.names import DEFAULT, preset_names

from .house import ROOT

PAGE = ROOT / "docs" / "settings.md"
Row = tuple[str, FieldInfo, Any]
"""A key of ``-c``, its field, its default."""

_HEAD = """# Settings

{about}
"""

_ABOUT = (
    "Every key that `-c KEY=VALUE` takes, and that a TOML file may hold: `rounds.count` is `count` under `[rounds]`. A "
    "value is TOML or a bare word; `null` is none. An unknown key is refused, with the nearest known one.",
    f"A run starts from a preset (`{DEFAULT}` where neither `--preset` nor a file is named), then comes the file, then "
    "`-c`. A file alone starts from the defaults below. The run's folder keeps the result as `config.toml`.",
    "[Recipes](recipes.md) says why the presets are as they are. This page is written by "
    "`python -m tests.settings_page` from the configuration itself.",
)


def rows(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Row]:
    """Yield every key below ``model``, sections last."""
    sections = []
    for name, field in model.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            sections.append((name, inner, field))
        if inner is None or field.default is None:
            yield f"{prefix}{name}", field, field.get_default()
    for name, inner, _ in sections:
        yield from rows(inner, f"{prefix}{name}.")


def page() -> str:
    """Return the page."""
    parts = [_HEAD.format(about="\n\n".join(_ABOUT))]
    found: dict[str, list[Row]] = {}
    for row in rows():
        found.setdefault(row[0].rpartition(".")[0], []).append(row)
    for section, own in found.items():
        about = (_model_of(section).__doc__ or "").split("\n")[0].replace("``", "`")
        parts.append(f"## {f'`[{section}]`' if section else 'The run'}\n\n{about}\n")
        parts.append("| key | values | default | |\n|---|---|---|---|")
        parts += [
            f"| `{key}` | {values(field)} | {_code(default)} | {_meaning(field)} |" for key, field, default in own
        ]
        parts.append("")
    return "\n".join([*parts, *_presets()]).rstrip() + "\n"


def values(field: FieldInfo) -> str:
    """Say which values a field takes: its type and bounds."""
    return _kind(field.annotation, list(field.metadata))


def _kind(kind: Any, metadata: list[Any]) -> str:
    if get_origin(kind) is typing.Annotated:
        inner, *more = get_args(kind)
        return _kind(inner, metadata + [m for f in more for m in (f.metadata if isinstance(f, FieldInfo) else [f])])
    if get_origin(kind) in (types.UnionType, typing.Union):
        said = [_kind(part, metadata) for part in get_args(kind) if part is not type(None)]
        return ", or ".join([*said, "null"] if type(None) in get_args(kind) else said)
    if get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is dict:
        keys, inner = get_args(kind)
        names = "names" if keys is str else _kind(keys, [])
        return f"table of {names} with each {_kind(inner, [])}"
    if get_origin(kind) is tuple:
        return f"list of {_PLURAL[get_args(kind)[0]]}"
    if _section(kind) is not None:
        return "a section, below"
    return f"{_NAMES[kind]}{_bounds(metadata)}"


_NAMES = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text", Path: "a folder"}
_PLURAL = {int: "whole numbers", str: "texts"}


def _bounds(metadata: list[Any]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [
        f"{word} {_number(getattr(m, bound))}" for m in metadata for bound, word in words.items() if hasattr(m, bound)
    ]
    return f" {', '.join(said)}" if said else ""


def _number(value: Any) -> str:
    return "2^63" if value == 2**63 else re.sub(r"e-0+", "e-", f"{value:g}")


def _meaning(field: FieldInfo) -> str:
    text = field.description or ""
    return text.replace("|", "\\|")


def _section(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _model_of(section: str) -> type[BaseModel]:
    model: type[BaseModel] = RunConfig
    for name in filter(None, section.split(".")):
        model = _section(model.model_fields[name].annotation) or model
    return model


def _code(value: Any) -> str:
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {_plain(v)}" for key, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f'"{v}"' if isinstance(v, str) else _plain(v) for v in value) + "]"
    return _number(value) if isinstance(value, float) else str(value)


def _presets() -> list[str]:
    """Return the table of what presets set otherwise than the defaults."""
    names = preset_names()
    configs = {name: load_config(preset=name) for name in names}
    keys = [key for key, _, _ in rows()]
    plain = RunConfig()
    changed = [key for key in keys if any(_get(configs[name], key) != _get(plain, key) for name in names)]
    head = "| key | " + " | ".join(f"`{name}`" for name in names) + " |\n" + "|---" * (1 + len(names)) + "|"
    lines = [f"| `{key}` | " + " | ".join(_code(_get(configs[name], key)) for name in names) + " |" for key in changed]
    return ["## What the presets set", "", "Keys in which a preset differs from the defaults.", "", head, *lines]


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name, None)
    return config.model_dump() if isinstance(config, BaseModel) else config


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(re.findall(r'^[|] `', page(), re.MULTILINE))} rows")
