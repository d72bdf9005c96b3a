"""The shape of the package, read from its source: what imports what, how long functions are, what things are called."""

import ast
import functools
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import networkx

PACKAGE = Path(__file__).parents[1] / "surgery"
ENTRIES = 22  # files and folders of the package's top level
MEDIAN, LONGEST = 6, 40  # lines of a function without its docstring

# Lower rooms first: a room imports those before it, never one behind it.
ROOMS = (
    "core",
    "graph",
    "transforms",
    "vision",
    "planning",
    "calibration",
    "deploy",
    "sensitivity_analysis",
    "mimicry",
    "methods",
    "checkpoint",
    "models",
    "convert",
    "__init__",
    "training",
    "bench",
    "comparison",
    "explanation",
    "cli",
    "__main__",
)

# (importing module, imported module): why an import inside a function may close a circle.
LAZY_CIRCLES = {
    ("surgery.planning.registry", "surgery.methods"): "every method there registers itself; the registry names none",
}

METHOD = re.compile(r"(?i:(?<![a-z])pix(?![a-z])|pick[- ]or[- ]mix)|PiX")
EMPTY_NAMES = {"given", "found", "known", "each", "place", "there"}
PARAMETERS = 8

# Functions with more parameters, self left out, and why.
MANY_PARAMETERS = {
    ("calibration/calibrating.py", "calibrate"): "a public function: two networks, images, and options by keyword",
    ("deploy/export.py", "export"): "a public function: a network, a file, and options by keyword",
    ("methods/pix/layer.py", "__init__"): "a public layer, whose variants are options by keyword",
    ("methods/pix/ops/pix.py", "pix"): "a public operator, whose variants are options by keyword",
    ("methods/pix/ops/pix.py", "_pix"): "the schema of a torch operator, which takes tensors and numbers alone",
    ("methods/pix/ops/pix.py", "_pix_backward"): "the schema of a torch operator",
    ("methods/pix/ops/pix.py", "_"): "shapes of a torch operator, by its schema",
}


@functools.cache
def sources() -> dict[str, str]:
    """Text by path below the package."""
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {path: ast.parse(text) for path, text in sources().items()}


@functools.cache
def modules() -> dict[str, str]:
    """Path by dotted name."""
    return {module_name(path): path for path in sources()}


def module_name(path: str) -> str:
    parts = ("surgery", *Path(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements that run, and whether only a call of a function runs them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            if isinstance(child.args[0], ast.Constant):
                yield ast.Import([ast.alias(child.args[0].value)]), lazy
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports(ast.Module(child.orelse, []), lazy)
        else:
            yield from imports(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imported(statement: ast.Import | ast.ImportFrom, importer: str) -> set[str]:
    """Modules of the package that a statement names: of ``from a import b`` a.b where that is one, else a."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & modules().keys()
    base = statement.module or ""
    if statement.level:
        levels = statement.level - modules()[importer].endswith("__init__.py")
        parents = importer.split(".")[: -levels or None]
        base = ".".join([*parents, base] if base else parents)
    names = (f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in statement.names)
    return set(names) & modules().keys()


@functools.cache
def edges() -> dict[tuple[str, str], bool]:
    """(importer, imported): whether only calls of functions import it."""
    result: dict[tuple[str, str], bool] = {}
    for importer, path in modules().items():
        for statement, lazy in imports(trees()[path]):
            for target in imported(statement, importer) - {importer}:
                result[importer, target] = result.get((importer, target), True) and lazy
    return result


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def circles(pairs: set[tuple[str, str]]) -> list[list[str]]:
    graph = networkx.DiGraph(sorted(pairs))
    return [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]


def definitions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Path and definition of every function that runs on the host."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_device_kernel(node):
                yield path, node


def functions() -> Iterator[tuple[str, str, int]]:
    """Path, name and lines without the docstring."""
    return ((path, node.name, length(node)) for path, node in definitions())


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many there are, without ``self`` and ``cls``."""
    named = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"]))


def is_device_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    lines = node.end_lineno - node.lineno + 1
    return lines - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def bound_names() -> Iterator[tuple[str, int, str]]:
    """Path, line and name of every variable and parameter."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield path, node.lineno, node.id
            elif isinstance(node, ast.arg):
                yield path, node.lineno, node.arg


def lines_that_name_the_method() -> Iterator[tuple[str, int, str]]:
    for path, text in sources().items():
        if not path.startswith("methods/pix/"):
            for number, line in enumerate(text.splitlines(), 1):
                if METHOD.search(line):
                    yield path, number, line.strip()


def test_no_module_imports_itself_by_way_of_others():
    eager = {pair for pair, lazy in edges().items() if not lazy}
    assert not circles(eager)
    assert LAZY_CIRCLES.keys() <= edges().keys(), "the list of exceptions names imports that are not there"
    assert not circles(edges().keys() - LAZY_CIRCLES.keys())


def test_rooms_import_lower_rooms_alone():
    between = {(room(a), room(b)) for a, b in edges().keys() - LAZY_CIRCLES.keys() if room(a) != room(b)}
    assert not {name for pair in between for name in pair} - set(ROOMS), "a room without its rank in ROOMS"
    assert sorted((a, b) for a, b in between if ROOMS.index(a) < ROOMS.index(b)) == []


def test_the_top_level_stays_small():
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    assert len(entries) <= ENTRIES, entries


def test_functions_fit_on_a_screen():
    assert [entry for entry in functions() if entry[2] > LONGEST] == []


def test_functions_are_short():
    assert statistics.median(lines for *_, lines in functions()) <= MEDIAN


def test_functions_have_few_parameters():
    many = {(path, node.name) for path, node in definitions() if parameters(node) > PARAMETERS}
    assert many == MANY_PARAMETERS.keys()


def test_one_method_is_named_in_its_folder_alone():
    assert list(lines_that_name_the_method()) == []


def test_variables_are_named_after_what_they_hold():
    assert [entry for entry in bound_names() if entry[2] in EMPTY_NAMES] == []


def test_the_rules_see_what_they_are_for():
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]
    assert edges()["surgery.methods.pix.ops.backend", "surgery.methods.pix.ops.cpu"], "a lazy import"
    assert not edges()["surgery.methods.pix.ops.pix", "surgery.methods.pix.ops.backend"]
    assert ("surgery.methods.pix.ops.backend", "surgery.methods.pix.ops.triton_kernels") in edges()
    named = ["PiX", "ComposedPiX", "pix", "_pix_fuse", "pick-or-mix", "Pick or Mix", "ops.pix"]
    assert [word for word in [*named, "pixel", "a pixmap", "mix"] if METHOD.search(word)] == named
    assert {"fuse", "pix"} <= {name for _, name, _ in functions()}
    assert "fuse_planes" not in {name for _, name, _ in functions()}, "a device kernel"


def test_lengths_leave_out_docstrings():
    source = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n'
    assert length(ast.parse(source).body[0]) == 4


def test_parameters_leave_out_self():
    assert parameters(ast.parse("def f(self, a, /, b, *c, d, **e): ...").body[0]) == 3
