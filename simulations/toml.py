"""Plain data as TOML text: Python reads TOML and does not write it."""

import json
import re
from collections.abc import Mapping
from typing import Any


def toml_text(data: Mapping[str, Any]) -> str:
    """Return nested plain data as TOML; ``None``, which TOML lacks, becomes the text "null"."""
    lines: list[str] = []
    _write(data, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write(table: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{_key(key)} = {_toml(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            lines.extend(["", f"[{prefix}{_key(key)}]"])
            _write(value, f"{prefix}{_key(key)}.", lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if value is None:
        return '"null"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
