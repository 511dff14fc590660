"""Who may import whom: the directions that keep the folders apart."""

from __future__ import annotations

import ast
import graphlib
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from tests.support.distributed import ROOT

PACKAGE = ROOT / "neuropbr_dist"
GROUND = {"errors", "files", "ranks", "processes", "fragment", "graphs", "kinds", "logs", "strip", "table"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "ranks": {"errors"},
    "processes": {"errors"},
    "fragment": set(),
    "graphs": set(),
    "kinds": set(),
    "logs": set(),
    "strip": set(),
    "table": set(),
    "config": GROUND,
    "cluster": GROUND,
    "kernels": GROUND,
    "checkpoint": GROUND,
    "materials": GROUND | {"kernels"},
    "models": GROUND | {"config", "materials", "kernels"},
    "objectives": GROUND | {"config", "materials", "kernels"},
    "data": GROUND | {"config", "materials", "kernels"},
    "parallel": GROUND | {"config", "cluster", "kernels", "models"},
    "monitor": GROUND | {"materials", "objectives"},
    "report": GROUND | {"config", "materials", "monitor"},
}
"""Folders with what they may know; those above (training, inference, commands) compose them."""
ENGINES = ("deepspeed", "torch.distributed.fsdp", "torch.nn.parallel")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's syntax tree. Parsed once: the tests ask eight times."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, inside functions as well."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def calls(*names: str) -> set[str]:
    """Files of the package that call a function or class of one of these names, as `name(…)` or `dist.name(…)`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def tokens(path: Path) -> list[tuple[int, str]]:
    """Kind and text of each."""
    code = io.StringIO(path.read_text(encoding="utf-8"))
    return [(token.type, token.string) for token in tokenize.generate_tokens(code.readline)]


def folder_of(module: str) -> str | None:
    """`neuropbr_dist.data.split` -> `data`; None for modules that aren't ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "neuropbr_dist" and len(parts) > 1 else None


def files(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py")) or [PACKAGE / f"{folder}.py"]


def folders() -> set[str]:
    return {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {
        "__init__",
        "__pycache__",
        "__main__",
    }


def known_to(folder: str) -> set[str]:
    """Other folders that its files import."""
    names = {folder_of(module) for path in files(folder) for module in imports(path)}
    return {name for name in names if name in folders()} - {folder}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_lower_folders_know_only_what_they_stand_on(folder):
    assert files(folder)[0].exists()
    assert known_to(folder) <= MAY_IMPORT[folder]


def test_no_circles():
    graph = {folder: known_to(folder) for folder in folders()}
    assert len(graph) > 10
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises on a circle
    assert order.index("config") < order.index("training") < order.index("commands")


def test_no_circles_between_files():
    """Inside a room either, and whether a file is imported at the top or in a function."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {name: {*imports(path)} & names.keys() - {name} for name, path in names.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises on a circle


def test_of_the_models_parallel_knows_the_norm_layers_alone():
    ours = {m for path in files("parallel") for m in imports(path) if folder_of(m) == "models"}
    assert ours and all(module.startswith("neuropbr_dist.models.norm") for module in ours)


def test_only_parallel_imports_engines():
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        for module in imports(path)
        if module.startswith(ENGINES)
    }
    assert users == {"parallel"}


def test_only_the_door_opens_data():
    assert calls("FileSource", "BuiltinSource", "PackedSource", "RenderedSource") == {"data/open.py"}


def test_only_files_py_puts_a_file_in_anothers_place():
    """But for checkpoints, whose folders and links have names of their own while they are made."""
    moves = {"os.replace", "os.rename", "os.renames", "os.link", "shutil.move"}
    found = calls(*moves)
    for path in PACKAGE.rglob("*.py"):
        for node in nodes(path):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            # A path's `replace` takes one argument, a text's two.
            renames = node.func.attr == "rename" or (node.func.attr == "replace" and len(node.args) == 1)
            if renames and not node.keywords:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"files.py", "checkpoint/folders.py", "checkpoint/store.py"}


def test_only_ranks_py_hands_objects_round():
    names = ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list")
    exchanged = calls(*(f"{where}.{name}" for name in names for where in ("dist", "torch.distributed")))
    assert exchanged == {"ranks.py"}


def test_a_byte_becomes_a_number_in_one_place():
    """Whoever divides pixels by 255 knows how bytes hold values; that is said in `materials/channels.py`.

    A bound may be given in levels: `1.01 / 255`, `SLACK / 255`.
    """
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in nodes(path):
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
                continue
            by = isinstance(node.right, ast.Constant) and node.right.value in (255, 127.5, 65535)
            bound = isinstance(node.left, ast.Constant) or ast.unparse(node.left).isupper()
            if by and not bound:
                users.add(path.relative_to(PACKAGE).as_posix())
    assert users == {"materials/channels.py"}


def test_an_argparse_namespace_does_not_leave_commands():
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if {"argparse", "Namespace"} & {text for kind, text in tokens(path) if kind == tokenize.NAME}
    }
    assert users == {"commands"}


def test_nothing_that_measures_is_imported_by_the_package():
    users = [path for path in PACKAGE.rglob("*.py") for m in imports(path) if m.split(".")[0] == "benchmarks"]
    assert users == []


def test_a_test_imports_no_other():
    """What several need is in `tests/support/`."""
    users = {
        path.name: module
        for path in (ROOT / "tests").rglob("*.py")
        for module in imports(path)
        if module.startswith("tests.test_")
    }
    assert users == {}


def test_the_gan_step_names_no_engine():
    code = [
        text
        for kind, text in tokens(PACKAGE / "training" / "step.py")
        if kind == tokenize.NAME or (kind == tokenize.STRING and not text.startswith('"""'))
    ]
    assert "gan_step" in code
    assert [word for word in code if re.search(r"(?i)fsdp|ddp|deepspeed|engine|isinstance|stage", word)] == []


def test_launch_scripts_only_parse_and_call():
    scripts = sorted((ROOT / "launch").glob("*.py"))
    assert len(scripts) >= 6
    for script in scripts:
        body = ast.parse(script.read_text(encoding="utf-8")).body
        assert not [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)], script.name
        assert len(script.read_text().splitlines()) <= 15, script.name
