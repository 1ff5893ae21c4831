"""The notebook of the examples: run from its source, and written with its outputs: ``python -m tests.notebook``.

The source has jupytext's percent format. Nothing of Jupyter is needed.
"""

import ast
import base64
import hashlib
import io
import json
import os
import pprint
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .house import ROOT

SOURCE, NOTEBOOK = ROOT / "examples" / "notebook.py", ROOT / "examples" / "notebook.ipynb"
Cell = tuple[str, str]
"""Its kind, ``markdown`` or ``code``, and its text."""


def cells(source: str) -> list[Cell]:
    """Return the cells of a file in percent format."""
    found = []
    for head, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", source, re.MULTILINE | re.DOTALL):
        text = body.strip("\n")
        if "[markdown]" in head:
            found.append(("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE)))
        else:
            found.append(("code", text))
    return found


def execute(found: list[Cell]) -> list[list[dict[str, Any]]]:
    """Run the code in this process and the folder it is in; return the outputs of every cell, none for markdown."""
    namespace: dict[str, Any] = {}
    return [_outputs(text, namespace, number) if kind == "code" else [] for number, (kind, text) in enumerate(found)]


def _outputs(text: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    body = ast.parse(text).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace) if last else None
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        found.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": _shown(value)})
    return found


def _shown(value: Any) -> dict[str, Any]:
    if not isinstance(value, Figure):
        return {"text/plain": _lines(pprint.pformat(value, width=100))}
    picture = io.BytesIO()
    value.savefig(picture, format="png", dpi=72)
    return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}


def notebook(found: list[Cell], outputs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the notebook (nbformat 4.5)."""
    made = []
    for number, ((kind, text), shown) in enumerate(zip(found, outputs, strict=True)):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:8],
            "metadata": {},
            "source": _lines(text),
        }
        made.append(cell | ({"execution_count": None, "outputs": shown} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run the source in a folder that is thrown away, and write the notebook."""
    found = cells(SOURCE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        here = Path.cwd()
        os.chdir(scratch)
        try:
            outputs = execute(found)
        finally:
            os.chdir(here)
    NOTEBOOK.write_text(json.dumps(notebook(found, outputs), indent=1) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {len(found)} cells")


if __name__ == "__main__":
    main()
