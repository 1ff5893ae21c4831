"""One way out, held by the syntax trees: only the gate makes an update, and device code can reach nobody else.

Python cannot be fenced in for certain; this sees every way that a mistake, or a line slipped into a review, would take.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from .house import ROOT, package_of
from .test_architecture import FILES, folder_of

MAKERS = {
    # The server makes one again of a device's bytes; an audit asks its wiring what it would make of others.
    "fedrecall.protocol.records.Update": {
        *("client/gate.py", "server/deployment/grid.py", "simulations/audit/checks/same_noise.py"),
    },
    "fedrecall.protocol.records.CohortSum": {
        "client/training/cohort.py",
        "client/training/start.py",
        "server/training/aggregation.py",
        "simulations/audit/attacks/models/promotion.py",  # what malicious devices and robust sums would make
        *("simulations/audit/checks/conformance.py", "simulations/audit/checks/same_noise.py"),
        *("simulations/audit/checks/start_sensitivity.py", "simulations/audit/watching/at_length.py"),
        "simulations/training/flower.py",
        "simulations/training/simulated_noise.py",
    },
}
"""Who makes each record. Sums exist in simulations alone, where a device is a row of a batch."""

PLAIN = {"collections", "collections.abc", "dataclasses", "functools", "math", "typing", "jaxtyping"}
MAY = {
    "client": {
        *PLAIN - {"collections"},
        "collections.Counter",
        "concurrent.futures.ThreadPoolExecutor",  # the batched path
        "queue.SimpleQueue",
        "csv.reader",  # the user's own files
        "csv.Error",
        "datetime",
        "difflib.get_close_matches",
        "io.TextIOWrapper",
        "json.JSONDecoder",
        "json.loads",
        "pathlib.Path",
        "pyarrow",
        "re",
        "secrets.token_hex",  # the gate's nonce
        "types.MappingProxyType",
        "numpy",
        "pydantic.BaseModel",
        "pydantic.ConfigDict",
        "pydantic.Field",
        "torch",
    },
    "models": {*PLAIN, "torch"},
    "privacy": {
        *PLAIN,
        *("contextlib", "cryptography.exceptions", "cryptography.hazmat.primitives", "datetime", "dp_accounting"),
        *("fcntl", "functools", "hashlib", "hmac", "secrets"),
        *("itertools.count", "json", "mpmath", "numpy", "opacus.grad_sample", "opacus.optimizers", "operator", "os"),
        *("pathlib.Path", "scipy"),
        *("torch", "warnings"),
    },
    "protocol": {
        *PLAIN,
        *("abc", "errno", "hashlib", "json", "numpy", "os", "pathlib", "re", "safetensors", "tempfile"),
    },
}
"""What device code may name of other projects. ``client`` reads foreign files, so its list is to the function."""

MAY_ALONE = {
    # Carries bytes between Flower and the folder: what the folder answers has passed the gate.
    "client/device/app.py": {
        *("flwr.app.Array", "flwr.app.ArrayRecord", "flwr.app.ConfigRecord", "flwr.app.Context", "flwr.app.Message"),
        *("flwr.app.RecordDict", "flwr.clientapp.ClientApp"),
    },
    # Reads its own files back, and refuses a folder that others may read.
    "client/device/folder.py": {"hashlib.sha256", "math.inf"},
    "client/device/enrolment.py": {"stat.S_IMODE"},
    # Runs this app in the place of whatever app the server names.
    "client/device/own_app.py": {
        *("flwr.clientapp.ClientApp", "flwr.supernode.cli.flwr_clientapp", "flwr.supernode.runtime.run_clientapp"),
    },
    # The device's own disk.
    "client/events/database.py": {
        *("contextlib.contextmanager", "os.O_CREAT", "os.O_RDWR", "os.close", "os.open", "sqlite3"),
        "types.TracebackType",
    },
    # Reads the user's own files, packed as they may be.
    "client/events/formats/containers.py": {
        *("codecs.BOM_UTF8", "codecs.BOM_UTF16_BE", "codecs.BOM_UTF16_LE", "codecs.BOM_UTF32_BE"),
        *("codecs.BOM_UTF32_LE", "contextlib.ExitStack", "contextlib.contextmanager", "io.BufferedReader"),
        *("io.RawIOBase", "zipfile.BadZipFile", "zipfile.ZipFile"),
    },
    "protocol/lock.py": {"collections.abc", "contextlib.contextmanager", "fcntl", "time.monotonic", "time.sleep"},
    "client/device/spool.py": {"contextlib.contextmanager", "fcntl", "os.close", "os.write", "tempfile.mkstemp"},
    "client/device/my_data.py": {"io.BytesIO", "os.walk", "zipfile"},
    "client/device/node_key.py": {"cryptography"},
    "client/device/join.py": {"shlex.quote"},
    # Starts the SuperNode, which talks to the server. What it may say comes from client/device/app.py alone.
    "client/device/supervise.py": {
        *("contextlib.contextmanager", "contextlib.suppress", "os.killpg", "signal", "subprocess", "threading.Event"),
        *("threading.Timer", "time.monotonic", "types.FrameType"),
    },
}
"""What one file of device code may name besides."""

MAY_NOT = {
    *(f"torch.{x}" for x in ("distributed", "multiprocessing", "hub", "save", "package", "jit", "ops", "classes")),
    *(f"torch.{x}" for x in ("onnx", "export", "profiler", "serialization", "storage", "from_file", "futures")),
    *(f"torch.utils.{x}" for x in ("cpp_extension", "tensorboard", "data", "model_zoo", "collect_env")),
    *(f"numpy.{x}" for x in ("save", "savez", "savez_compressed", "savetxt", "memmap", "ctypeslib", "f2py", "lib")),
    *(f"numpy.{x}" for x in ("DataSource", "genfromtxt", "loadtxt", "testing", "distutils")),
    *(f"pyarrow.{x}" for x in ("fs", "flight", "ipc", "dataset", "feather", "orc", "OSFile", "output_stream")),
    *(f"pyarrow.{x}" for x in ("memory_map", "create_memory_map", "csv.write_csv", "csv.CSVWriter", "cffi", "cuda")),
    *(f"pyarrow.parquet.{x}" for x in ("ParquetWriter", "write_table", "write_to_dataset", "write_metadata")),
    *(f"os.{x}" for x in ("system", "popen", "fork", "forkpty", "pipe", "mkfifo", "sendfile", "execv", "execve")),
    *(f"os.{x}" for x in ("execl", "spawnl", "spawnv", "posix_spawn", "startfile", "putenv", "environ", "dup2")),
    *("scipy.io", "scipy.datasets", "safetensors.torch", "dp_accounting.local_accounting"),
}
BUILTINS = {"__import__", "eval", "exec", "compile", "globals", "locals", "vars", "print", "breakpoint", "input"}
"""Names that reach what no list shows, or write where logs are read."""

DUNDERS = {
    *("__class__", "__dict__", "__globals__", "__builtins__", "__subclasses__", "__bases__", "__base__", "__mro__"),
    *("__loader__", "__spec__", "__getattribute__", "__reduce__", "__reduce_ex__", "__code__", "__closure__"),
    *("__self__", "__func__", "__setattr__", "__wrapped__", "_replace"),
}
WRITING = {
    *("write", "writelines", "write_text", "write_bytes", "tofile", "dump", "touch", "mkdir", "rename", "symlink_to"),
    *("hardlink_to", "savez", "save", "write_table", "write_csv", "to_parquet", "to_csv", "send", "sendall", "connect"),
}
WRITERS = {
    *("protocol/files.py", "privacy/ledger/chain.py"),
    *("client/events/database.py", "protocol/lock.py", "client/device/spool.py"),
}
"""Files that write to the device's own disk: the one atomic write of all artefacts, ledgers, events, locks."""

REPLACERS = {"client/events/formats/delimited.py", "client/events/parsing.py"}
"""Client files that copy records with changes: layouts of the user's files."""


class Reader(ast.NodeVisitor):
    """Collects what a file names of other modules, and every construct that could hide a name."""

    def __init__(self, file: str, package: str) -> None:
        self.file, self.package = file, package
        self.names: dict[str, str] = {}
        self.modules: set[str] = set()
        self.types = 0  # depth of annotations
        self.uses: list[tuple[int, str]] = []
        self.faults: list[str] = []

    def fault(self, node: ast.AST, words: str) -> None:
        self.faults.append(f"{self.file}:{getattr(node, 'lineno', 0)} {words}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.split(".")[0]
            self.names[bound] = alias.name if alias.asname else bound
            self.modules.add(bound)
            self.uses.append((node.lineno, alias.name + ".*"))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parents = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            if alias.name == "*":
                self.fault(node, f"imports everything of {module}")
            self.names[alias.asname or alias.name] = f"{module}.{alias.name}"
            if module.startswith("fedrecall"):
                continue
            self.uses.append((node.lineno, f"{module}.{alias.name}"))

    def dotted(self, node: ast.expr) -> str | None:
        """Return what a chain of attributes names, where it starts from an import."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self.names:
            return ".".join([self.names[node.id], *reversed(parts)])
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        full = self.dotted(node)
        if node.attr in DUNDERS:
            self.fault(node, f"reaches behind an object by {node.attr}")
        if full is None:
            self.visit(node.value)
        else:
            self.named(node, full)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.modules:
            self.fault(node, f"hands the module {node.id} around")
        elif node.id in self.names:
            self.named(node, self.names[node.id])
        elif node.id in BUILTINS:
            self.fault(node, f"names {node.id}")

    def named(self, node: ast.expr, full: str) -> None:
        if full in MAKERS and not self.types and self.file not in MAKERS[full]:
            self.fault(node, f"makes or hands on {full}")
        if not full.startswith("fedrecall"):
            self.uses.append((node.lineno, full))

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value in ("Update", "CohortSum") and self.file != "protocol/records.py":
            self.fault(node, f"spells {node.value!r}")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self.typed(node.slice)

    def typed(self, node: ast.expr | None) -> None:
        """Visit a type: a name in it makes nothing."""
        self.types += 1
        if node is not None:
            self.visit(node)
        self.types -= 1

    def visit_arg(self, node: ast.arg) -> None:
        self.typed(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self.typed(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.typed(node.returns)
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:
        called, first = node.func, node.args[0] if node.args else None
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        full = self.dotted(called) or ""
        if isinstance(called, ast.Call) and getattr(called.func, "id", "") == "type":
            self.fault(node, "calls the type of an object")
        if isinstance(called, ast.Name) and name in ("getattr", "setattr") and self.dotted(first or called):
            self.fault(node, f"looks a name up in a module by {name}")
        if full == "dataclasses.replace" and self.file.startswith("client/") and self.file not in REPLACERS:
            self.fault(node, "copies a record with changes")
        if self.file not in WRITERS and not full.startswith("fedrecall"):
            if name in WRITING and isinstance(called, ast.Attribute):
                self.fault(node, f"writes or sends by {name}")
            if name in ("open", "fdopen", "FileIO"):
                method = isinstance(called, ast.Attribute) and not full
                mode = [k.value for k in node.keywords if k.arg == "mode"] or node.args[0 if method else 1 :][:1]
                reads = all(isinstance(m, ast.Constant) and m.value in ("r", "rb", "rt") for m in mode)
                if not reads or full or any(k.arg in (None, "opener") for k in node.keywords):
                    self.fault(node, "opens a file for more than reading")
        self.visit(called)
        if name == "isinstance" and len(node.args) == 2:
            self.visit(node.args[0])
            self.typed(node.args[1])
        else:
            for argument in (*node.args, *(k.value for k in node.keywords)):
                self.visit(argument)


def below(use: str, prefixes: set[str]) -> bool:
    return any(use == prefix or use.startswith(prefix + ".") for prefix in prefixes)


def permitted(use: str, allowed: set[str]) -> bool:
    """Whether device code may name ``use``; ``module.*`` stands for importing a module, whose names are seen later."""
    module = use.removesuffix(".*")
    if below(module, MAY_NOT):
        return False
    return below(module, allowed) or (use != module and any(one.startswith(module + ".") for one in allowed))


def faults(file: str, source: str, package: str) -> Iterator[str]:
    """Yield what is wrong with a file: on devices everything above, elsewhere who makes updates."""
    reader, folder = Reader(file, package), file.split("/")[0]
    reader.visit(ast.parse(source))
    if folder in MAY:
        yield from reader.faults
        for line, use in reader.uses:
            if not use.startswith("fedrecall") and not permitted(use, MAY[folder] | MAY_ALONE.get(file, set())):
                yield f"{file}:{line} names {use}"
    else:
        yield from (fault for fault in reader.faults if "makes or hands on" in fault)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_but_the_gate_can_send(path: Path) -> None:
    file = path.relative_to(ROOT).as_posix()
    assert not list(faults(file, path.read_text(encoding="utf-8"), package_of(path)))


@pytest.mark.parametrize("folder", MAY)
def test_every_permission_is_used(folder: str) -> None:
    uses = set()
    for path in FILES:
        if folder_of(path) == folder:
            reader = Reader(path.relative_to(ROOT).as_posix(), package_of(path))
            reader.visit(ast.parse(path.read_text(encoding="utf-8")))
            uses |= {use for _, use in reader.uses}
    assert not {one for one in MAY[folder] - PLAIN if not any(below(use, {one}) for use in uses)}


@pytest.mark.parametrize("file", MAY_ALONE)
def test_every_permission_of_one_file_is_used(file: str) -> None:
    reader = Reader(file, package_of(ROOT / file))
    reader.visit(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    assert {one for one in MAY_ALONE[file] if any(below(use, {one}) for _, use in reader.uses)} == MAY_ALONE[file]


@pytest.mark.parametrize("file", MAY_ALONE)
def test_what_one_file_may_do_is_not_what_a_device_may_do(file: str) -> None:
    for planted in ("from flwr.app import Message", "import requests", "import flwr.client"):
        assert list(faults("client/planted.py", planted, "fedrecall.client"))
    for planted in ("import requests", "import flwr.client", "from flwr.supercore import log", "import socket"):
        assert list(faults(file, planted, "fedrecall.client"))


def test_every_file_that_may_do_more_exists() -> None:
    for file in WRITERS | REPLACERS | {file for makers in MAKERS.values() for file in makers}:
        assert (ROOT / file).is_file(), file


RECORDS = "from fedrecall.protocol.records import Update\n"
PLANTED = {
    "an update": RECORDS + "Update(round=1, nonce='', arrays={})",
    "by another name": "from fedrecall.protocol.records import Update as U\nU(round=1, nonce='', arrays={})",
    "by its module": "from fedrecall.protocol import records\nrecords.Update(round=1, nonce='', arrays={})",
    "by the module's name": "import fedrecall.protocol.records as r\nr.Update(round=1, nonce='', arrays={})",
    "by a relative import": "from ..protocol.records import Update\nUpdate(round=1, nonce='', arrays={})",
    "by a variable": RECORDS + "make = Update\nmake(round=1, nonce='', arrays={})",
    "by a subclass": RECORDS + "class Mine(Update): pass",
    "by a partial": RECORDS + "from functools import partial\npartial(Update, round=1)",
    "by a list": RECORDS + "[Update][0](round=1)",
    "by a default": RECORDS + "def f(make=Update): return make(round=1)",
    "by replace": "from dataclasses import replace\ndef f(update): return replace(update, arrays={})",
    "by replace of its module": "import dataclasses\ndef f(update): return dataclasses.replace(update, arrays={})",
    "by its type": "def f(update): return type(update)(round=1, nonce='', arrays={})",
    "by its class": "def f(update): return update.__class__(round=1, nonce='', arrays={})",
    "by getattr": "from fedrecall.protocol import records\ngetattr(records, 'Up' + 'date')",
    "by its spelling": "def f(x): return getattr(x, 'Update')",
    "by a dictionary": "from fedrecall.protocol import records\nvars(records)['Update'](round=1)",
    "everything": "from fedrecall.protocol.records import *",
    "a sum": "from fedrecall.protocol.records import CohortSum\nCohortSum(round=1, devices=1, arrays={})",
    **{
        f"import {module}": f"import {module}"
        for module in (
            *("socket", "ssl", "http.client", "urllib.request", "requests", "httpx", "grpc", "flwr", "asyncio"),
            *("multiprocessing", "subprocess", "ftplib", "smtplib", "telnetlib", "xmlrpc.client", "webbrowser"),
            *("ctypes", "importlib", "pty", "sys", "shutil", "tempfile", "logging", "pickle", "copy", "builtins"),
            *("sqlite3", "syslog", "mmap", "safetensors.numpy", "torch.distributed", "pyarrow.flight", "ray"),
        )
    },
    "inside a function": "def f():\n    from socket import create_connection",
    "processes": "from concurrent.futures import ProcessPoolExecutor",
    "processes by their module": "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
    "torch to other machines": "import torch\ntorch.distributed.send(1, 2)",
    "torch from the network": "from torch import hub",
    "torch to a file": "import torch as t\nt.save({}, 'x')",
    "numpy to a file": "import numpy as np\nnp.save('x', 1)",
    "numpy to a file by a method": "def f(array): array.tofile('x')",
    "a shell": "import os\nos.system('curl')",
    "a shell by its module's alias": "import os\no = os\no.system('curl')",
    "a shell by getattr": "import os\ngetattr(os, 'sys' + 'tem')('curl')",
    "an environment": "import os\nos.environ['X'] = '1'",
    "import by a function": "__import__('socket')",
    "code": "eval('1')",
    "more code": "exec('import socket')",
    "printing": "def f(events): print(events)",
    "a written file": "open('x', 'w')",
    "a file that is also written": "open('x', mode='r+')",
    "a file of unknown mode": "def f(mode): return open('x', mode)",
    "a file opened by a stranger": "def f(x): return open('x', 'r', opener=x)",
    "a file opened by keywords": "def f(x): return open('x', **x)",
    "a path that is written": "from pathlib import Path\nPath('x').open('ab')",
    "a path that is written at once": "from pathlib import Path\nPath('x').write_text('x')",
    "a folder that says something": "from pathlib import Path\nPath('x').mkdir()",
    "a table that is written": "import pyarrow.parquet as pq\npq.write_table(1, 'x')",
    "a descriptor": "import os\nos.open('x', 1)",
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    assert list(faults("client/planted.py", PLANTED[name], "fedrecall.client"))


SOUND = {
    "types": RECORDS + "from collections.abc import Callable\ndef f(x: Update) -> list[Update]: ...\n"
    "Collect = Callable[[int], Update]\nx: Update | None = None",
    "a question": RECORDS + "def f(x): return isinstance(x, Update)",
    "reading": "from pathlib import Path\nopen('x')\nopen('x', 'rb')\nPath('x').open('rb')\nopen('x', encoding='utf8')",
    "a ledger": "from fedrecall.privacy.ledger.ledger import Ledger\nLedger.open('x', 1)",
    "names": "import re\nre.compile('x')\nimport numpy as np\nnp.zeros(1)\ngetattr(object(), 'x')",
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes(name: str) -> None:
    assert not list(faults("client/sound.py", SOUND[name], "fedrecall.client"))


@pytest.mark.parametrize("folder", ["server", "simulations", "fedrecall/cli", "models", "privacy", "protocol"])
def test_nobody_else_makes_an_update(folder: str) -> None:
    assert list(faults(f"{folder}/planted.py", PLANTED["an update"], "fedrecall.x"))
