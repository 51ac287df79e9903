"""Importing is cheap and has no effects; the two packages keep to their layers."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import spectral_kernels

import spectral_engine

ROOTS = {
    name: Path(module.__file__).parent
    for name, module in (
        ("spectral_engine", spectral_engine),
        ("spectral_kernels", spectral_kernels),
    )
}
HEAVY = ("triton", "cupy", "matplotlib", "pandas", "lightning", "transformers", "sklearn")

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


def probe(module: str, cache: Path) -> dict:
    """What importing `module` in a fresh interpreter did."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
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


def modules() -> dict[str, ast.Module]:
    """Every module of both packages, by its full name."""
    found = {}
    for package, root in ROOTS.items():
        for path in root.rglob("*.py"):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text())
    return found


def is_package(name: str) -> bool:
    package, *rest = name.split(".")
    return ROOTS[package].joinpath(*rest).is_dir()


def imports(name: str, tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Full names that a module imports, those of functions and of type checking only if `lazy`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".") if is_package(name) else name.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif lazy or not is_put_off(node):
            yield from imports(name, node, lazy=lazy)


def is_put_off(node: ast.AST) -> bool:
    """Whether what it holds does not run when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_layers_are_kept():
    """Catches kernels that know models or files, and an engine that calls Triton or Numba."""
    seen = set()
    for name, tree in modules().items():
        for imported in imports(name, tree, lazy=True):
            package = imported.partition(".")[0]
            seen.add((name.partition(".")[0], package))
            if name.startswith("spectral_kernels"):
                assert package not in ("spectral_engine", "safetensors", "typer", "rich"), name
                assert not imported.startswith("torch.nn") or "functional" in imported, name
            else:
                assert package not in ("triton", "numba", "cupy"), name
    assert {("spectral_engine", "spectral_kernels"), ("spectral_kernels", "numba")} <= seen


def test_no_import_cycles():
    """Catches a module that can only be imported after another one has been."""
    trees = modules()
    graph = {}
    for name, tree in trees.items():
        found = imports(name, tree, lazy=False)
        known = {full if full in trees else full.rpartition(".")[0] for full in found}
        graph[name] = (known & set(trees)) - {name}
    assert "spectral_engine.layers.find" in graph["spectral_engine.pruning.model"]
    assert "spectral_kernels.reference.budget" in graph["spectral_kernels.call.pipeline"]
    # A package may import its own modules, which then name it only through its parts.
    tuple(graphlib.TopologicalSorter(graph).static_order())
