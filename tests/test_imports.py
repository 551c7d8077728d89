"""Imports run one way: cli -> engine -> train -> {nn, optim, data}, and those three do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import distbp

ROOT = Path(distbp.__file__).parent
BASE = {"errors", "kernels", "memory", "options", "randomness", "version", "wording"}
MAY_IMPORT = {
    "nn": BASE,
    "optim": BASE,
    "data": BASE,
    "train": BASE | {"nn", "optim", "data"},
    "engine": BASE | {"nn", "data", "train"},
    "progress": BASE | {"train"},
    "trainer": BASE | {"nn", "data", "train", "engine", "progress"},
    "cli": BASE | {"__init__", "data", "train", "engine", "progress"},
}
LIBRARIES = {"mpi4py": "engine/mpi.py", "ray": "engine/ray.py"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" if node.module == "distbp" else node.module for alias in node.names}
    return names


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_know_only_the_rooms_below(room):
    files = list((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "distbp" and parts[1] != room:
                target = parts[1] if (ROOT / parts[1]).exists() or (ROOT / f"{parts[1]}.py").exists() else "__init__"
                assert target in MAY_IMPORT[room], f"{file} imports {name}"


@pytest.mark.parametrize(("library", "place"), LIBRARIES.items())
def test_an_engine_library_is_imported_in_one_place(library, place):
    users = [str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if library in {n.split(".")[0] for n in imports(f)}]
    assert users == [place]


def test_importing_distbp_imports_no_engine_library():
    import subprocess
    import sys

    code = "import sys, distbp, distbp.cli.main; sys.exit(bool({'mpi4py', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_nothing_of_ours_is_pickled():
    for file in ROOT.rglob("*.py"):
        assert "pickle" not in {name.split(".")[0] for name in imports(file)}
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func)
            if name in ("np.load", "np.save"):
                assert any(k.arg == "allow_pickle" and k.value.value is False for k in call.keywords), (file, name)
