"""Import rules between the rooms, held over the syntax trees of all modules."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room imports rooms of the groups before its own, besides itself. Modules directly in training/ are the programs.
LAYERS = {
    "training": (
        ("common",),
        ("data",),
        ("step", "vocabulary", "tracing"),
        ("run",),
        ("tasks",),
        ("curation",),
        ("pretraining", "finetuning", "evaluation", "space"),
        ("programs",),
        ("bench",),
    ),
    "model_card": (
        ("escaping", "signals"),
        ("files",),
        ("provenance", "run", "hub"),
        ("facts",),
        ("formats", "disclosure", "run_export"),
        ("programs",),
    ),
}
EXCEPTIONS = {("training.pretraining.prepare", f"training.{name}") for name in ("corpus", "tokenizer", "shards")}


def modules() -> dict[str, Path]:
    """Return the file of every module of the three packages, by dotted name."""
    paths = [path for package in ("modeling_pleias", *LAYERS) for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Yield the modules of this project that a module imports, at its top or inside functions."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in MODULES or base in MODULES:
                    yield target if target in MODULES else base


GRAPH = {name: sorted(set(imports(name)) - {name}) for name in MODULES}


def layer(name: str) -> tuple[int, str]:
    """Return the index of the layer of a module, and its room."""
    package, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    for index, rooms in enumerate(LAYERS[package]):
        if room in rooms:
            return index, room
    return next(index for index, rooms in enumerate(LAYERS[package]) if "programs" in rooms), "programs"


@pytest.mark.parametrize("package", LAYERS)
def test_a_room_imports_only_rooms_of_the_layers_below(package):
    wrong = []
    for name, targets in GRAPH.items():
        if name.partition(".")[0] != package or name == package:
            continue
        (level, room) = layer(name)
        for target in targets:
            if target.partition(".")[0] == package and target != package and (name, target) not in EXCEPTIONS:
                if layer(target)[1] != room and layer(target)[0] >= level:
                    wrong.append((name, target))
    assert wrong == []


def test_the_packages_are_apart():
    allowed = {"modeling_pleias": {"modeling_pleias"}} | {name: {name, "modeling_pleias"} for name in LAYERS}
    for name, targets in GRAPH.items():
        assert {target.partition(".")[0] for target in targets} <= allowed[name.partition(".")[0]], name


def test_no_circle_of_imports():
    # A package's `__init__` runs before its modules, and may import them: only modules that import each other count.
    graph = {
        name: [target for target in targets if not name.startswith(f"{target}.")] for name, targets in GRAPH.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)
