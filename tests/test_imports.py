"""The package's layers: which module may import which, and which libraries."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bertmon

ROOT = Path(bertmon.__file__).parent
LAYERS = [
    {"sanitize", "notation", "parameter_names"},
    {"errors", "plot_style"},
    {"storage", "schedule", "metrics", "distributed"},
    {"config"},
    {"hub"},
    {"monitor", "data", "model", "optimizer"},
    {"result"},
    {"training"},
    {"integrations", "compare"},
    {"launch", "predict"},
    {"run"},
    {"cli"},
    {"__main__"},
    {""},  # bertmon/__init__.py, the public API: it imports its parts on first use
]
"""From the bottom up. A module imports only from its own subpackage and from the layers below."""

HYDRA = {"launch", "run", "cli", "__main__"}
NUMPY_ONLY = {"monitor.history", "monitor.diagnosis"}


def subpackage(module: str) -> str:
    return module.partition(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path):
    """Absolute names of everything that a source file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source_module(name: str) -> str | None:
    """The module of this package that provides an imported name; None for other packages."""
    package, _, rest = name.partition(".")
    if package != "bertmon":
        return None
    file = ROOT / rest.replace(".", "/")
    is_module = file.is_dir() or file.with_suffix(".py").exists()
    return rest if is_module else rest.rpartition(".")[0]


SOURCES = {module_name(path): tuple(imported_names(path)) for path in sorted(ROOT.rglob("*.py"))}
EDGES = {
    (module, target)
    for module, names in SOURCES.items()
    for target in map(source_module, names)
    if target is not None and target != module
}


def test_every_module_has_a_layer():
    assert {subpackage(module) for module in SOURCES} == set().union(*LAYERS)


def test_imports_point_down():
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = {
        (module, target)
        for module, target in EDGES
        if subpackage(module) != subpackage(target) and layer[subpackage(module)] <= layer[subpackage(target)]
    }
    assert wrong == set()


def test_no_two_modules_import_each_other():
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for module, target in EDGES:
        if module:  # the public API imports lazily
            graph[module].add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError


def libraries(module: str) -> set[str]:
    return {name.partition(".")[0] for name in SOURCES[module]} - set(sys.stdlib_module_names) - {"bertmon"}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_libraries_stay_in_their_subpackages(module):
    if subpackage(module) not in HYDRA:
        assert "hydra" not in libraries(module)
    if module in NUMPY_ONLY:
        assert libraries(module) <= {"numpy"}
    if subpackage(module) == "compare":
        assert not libraries(module) & {"torch", "transformers"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bertmon", {"torch", "transformers", "hydra", "matplotlib", "tensorboard", "sklearn"}),
        ("import bertmon.monitor.diagnosis", {"torch", "hydra", "matplotlib", "tensorboard"}),
        ("import bertmon.compare.__main__", {"torch", "transformers", "hydra", "sklearn"}),
        ("import bertmon.integrations.own_loop", {"hydra", "sklearn"}),
    ],
)
def test_import_loads_only_what_it_needs(statement, absent):
    code = f"import sys; {statement}; print(*({absent!r} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == []
