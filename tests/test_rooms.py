"""The rooms of the house: what a folder may hold, what it may import, and how light that is."""

import ast
import graphlib
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import spectral_kernels

import spectral_engine

REPOSITORY = Path(__file__).parents[1]
ROOTS = {
    module.__name__: Path(module.__file__).parent for module in (spectral_engine, spectral_kernels)
}
#: The rooms of each package, the lowest first: a room imports only those before it.
ORDER = {
    "spectral_engine": (
        "_util", "distributed", "checkpoints", "pages", "recipe", "matrix", "layers", "masking",
        "factored", "refitting",
        "sparsifying", "calibration", "reconstruction", "datafree", "pruning", "streaming",
        "spectral",
        "training", "profiling", "compression", "cards", "demo", "cli",
    ),
    "spectral_kernels": (
        "_validation", "_numba", "reference", "spectra", "backends", "call", "product",
    ),
}  # fmt: skip
HEAVY = ("triton", "cupy", "matplotlib", "pandas", "lightning", "transformers", "sklearn")
MOST_FILES = 12
MOST_LINES = {"spectral_engine": 400, "kernels": 400, "bench": 400, "tests": 500}

PROBE = """
import json, sys, time
start = time.process_time()
import torch, numba
middle = time.process_time()
import {module}
end = time.process_time()
print(json.dumps({{
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "cuda": torch.cuda.is_initialized(),
    "libraries": middle - start,
    "ours": end - middle,
}}))
"""


def probe(module: str, cache_folder: Path) -> dict:
    """What importing `module` in a fresh interpreter did."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache_folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["spectral_engine", "spectral_engine.cli"])
def test_import_is_light(module, tmp_path):
    """Catches CUDA probed, a kernel compiled, Triton or Matplotlib loaded at import, and an import
    that costs more than torch and Numba themselves."""
    found = probe(module, tmp_path)
    assert not found["cuda"]
    assert not set(HEAVY) & set(found["modules"])
    assert list(tmp_path.rglob("*.nb?")) == []
    assert found["ours"] < found["libraries"]


@pytest.mark.parametrize("module", ["spectral_engine", "spectral_engine.cli"])
def test_the_command_line_is_there_before_torch(module):
    """Catches an import by which each Tab in a shell, and `--help`, waits for PyTorch."""
    code = f"import json, sys, {module}; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert ("typer" in loaded) == (module == "spectral_engine.cli")
    assert not loaded & {"torch", "numba", "numpy", "spectral_kernels", *HEAVY}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of both packages, by its full name."""
    found = {}
    for package, root in ROOTS.items():
        for path in root.rglob("*.py"):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text()
            if path.with_suffix(".pyi").exists():  # what is imported at first use
                text += path.with_suffix(".pyi").read_text()
            found[name] = ast.parse(text)
    return found


def is_package(name: str) -> bool:
    package, *rest = name.split(".")
    return ROOTS[package].joinpath(*rest).is_dir()


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Full names that a module imports anywhere, also in functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if is_package(name) else name.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_of(full: str) -> str | None:
    """The module of ours that an imported name is, or is in; None for other packages."""
    found = full if full in modules() else full.rpartition(".")[0]
    return found if found in modules() else None


def arrows() -> dict[str, set[str]]:
    """Which modules of ours each module imports."""
    return {
        name: {found for full in imports(name, tree) if (found := module_of(full))} - {name}
        for name, tree in modules().items()
    }


def room_of(name: str) -> tuple[str, str]:
    """The package of a module, and its room there; empty for the package itself."""
    package, *rest = name.split(".")
    return package, rest[0] if rest else ""


def test_layers_are_kept():
    """Catches kernels that know models or files, and an engine that calls Triton or Numba."""
    seen = set()
    for name, tree in modules().items():
        for imported in imports(name, tree):
            package = imported.partition(".")[0]
            seen.add((name.partition(".")[0], package))
            if name.startswith("spectral_kernels"):
                assert package not in ("spectral_engine", "safetensors", "typer", "rich"), name
                assert not imported.startswith("torch.nn") or "functional" in imported, name
            else:
                assert package not in ("triton", "numba", "cupy"), name
    assert {("spectral_engine", "spectral_kernels"), ("spectral_kernels", "numba")} <= seen


def test_the_engine_uses_what_the_kernels_declare_public():
    """Catches the engine reaching behind the `__all__` of the kernels."""
    checked = 0
    for name, tree in modules().items():
        for full in imports(name, tree) if name.startswith("spectral_engine") else ():
            base, _, last = full.rpartition(".")
            if full == "spectral_kernels" or not full.startswith("spectral_kernels"):
                continue
            assert is_package(base), f"{name} imports {full}"
            assert last in importlib.import_module(base).__all__, f"{name} imports {full}"
            checked += 1
        for node in ast.walk(tree) if name.startswith("spectral_engine") else ():
            whole = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if whole and node.value.id == "spectral_kernels":
                assert node.attr in spectral_kernels.__all__, f"{name} uses {node.attr}"
    assert checked > 10


def test_no_import_circle():
    """Catches modules that import each other, if only in a function."""
    graph = arrows()
    assert "spectral_engine.layers.find" in graph["spectral_engine.pruning.plan"]
    # A package may import its own modules, which then name it only through its parts.
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_arrows_between_rooms_point_down():
    """Catches a room that imports one above it, and a room that has no place in the order."""
    for name, targets in arrows().items():
        package, room = room_of(name)
        if room in ("", "__main__"):
            continue
        order = ORDER[package]
        assert room in order, f"{name}: the room {room} is not in ORDER"
        for target in targets:
            other_package, other = room_of(target)
            if other_package == package and other != room:
                # The package's own version is all that may be had from above.
                assert (other == "" and room == "cli") or other in order[: order.index(room)], (
                    f"{name} imports {target}"
                )


def folders() -> Iterator[Path]:
    """Every folder of both packages, of bench and of the tests that holds Python files."""
    for root in (*ROOTS.values(), REPOSITORY / "bench", REPOSITORY / "tests"):
        yield from {path.parent for path in root.rglob("*.py")}


def test_no_folder_is_crowded():
    """Catches a folder in which one has to search: more than twelve Python files."""
    sizes = Counter({str(path): len(list(path.glob("*.py"))) for path in folders()})
    assert sizes.total() > 200
    assert {path: size for path, size in sizes.items() if size > MOST_FILES} == {}


@pytest.mark.parametrize("root", MOST_LINES)
def test_no_file_is_too_long_for_one_sitting(root):
    """Catches a file that holds more than one idea by its length."""
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in (REPOSITORY / root).rglob("*.py")
    }
    assert len(lengths) > 20
    assert {path: n for path, n in lengths.items() if n > MOST_LINES[root]} == {}


@pytest.mark.parametrize("package", [spectral_engine, spectral_kernels], ids=lambda p: p.__name__)
def test_no_folder_hides_a_public_function(package):
    """Catches a folder whose name, once imported, takes the place of a public function."""
    names = {path.parent.name for path in ROOTS[package.__name__].rglob("*.py")}
    assert len(names) > 5
    assert names & {*package.__all__} == set()


def test_no_test_imports_a_test():
    """Catches a test that breaks when another is moved; what tests share is in tests/support."""
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for full in imports("spectral_engine", ast.parse(path.read_text())):
            assert not any(part.startswith("test_") for part in full.split(".")) or full.startswith(
                "bench."
            ), f"{path.name} imports {full}"
