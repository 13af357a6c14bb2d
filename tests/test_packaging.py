"""The folders of the repository, what pyproject.toml says of them, and what an install of them brings."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bitwright

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
NOT_INSTALLED = {"tests", "examples", "benchmarks", "docs"}
IN_CHECKOUT = (ROOT / "bitwright").is_dir()  # else the tests lie alone and run on the installed wheel

# What the code of a folder may import. The order is the architecture: nothing in qcore knows a layer.
MAY_IMPORT = {
    "qcore": {"qcore"},
    "quantizers": {"qcore", "quantizers"},
    "nn": {"qcore", "quantizers", "nn"},
    "graph": {"qcore", "quantizers", "nn", "graph"},
    "export": {"qcore", "quantizers", "nn", "export"},
    "testing": {"qcore", "quantizers", "nn", "graph", "export", "testing"},
}

only_in_checkout = pytest.mark.skipif(not IN_CHECKOUT, reason="about the checkout, and this is a run on the wheel")
only_on_wheel = pytest.mark.skipif(IN_CHECKOUT, reason="about the wheel, and this is a run on the checkout")


def imported(path: Path) -> set[str]:
    """The folders that a file imports from, and what it imports of bitwright by absolute name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            found.add(path.parent.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return {name for name in found if name in MAY_IMPORT or name.startswith("bitwright.")}


def test_packages_are_mapped_to_the_folders_of_their_names():
    assert PACKAGES == ["bitwright", *FOLDERS]
    assert FOLDERS == {name: name.removeprefix("bitwright.").replace(".", "/") for name in FOLDERS}


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_importable(name):
    assert importlib.import_module(name).__name__ == name


@only_in_checkout
def test_every_folder_of_code_is_listed():
    """One that isn't would be missing from the wheel, without a word."""
    found = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/*.py")}
    installed = {folder for folder in found if folder.split("/")[0] not in NOT_INSTALLED}
    assert installed == {"bitwright", *FOLDERS.values()}


@only_in_checkout
@pytest.mark.parametrize("folder", ["bitwright", *FOLDERS.values()])
def test_folder_is_a_package(folder):
    assert (ROOT / folder / "__init__.py").is_file()


@only_in_checkout
def test_repository_is_not_a_package():
    assert not (ROOT / "__init__.py").exists()


@only_in_checkout
@pytest.mark.parametrize("folder", FOLDERS.values())
def test_imports_point_one_way_and_are_relative(folder):
    allowed = MAY_IMPORT[folder.split("/")[0]] | {"bitwright.__version__"}
    astray = {path.name: imported(path) - allowed for path in sorted((ROOT / folder).glob("*.py"))}
    assert {name: names for name, names in astray.items() if names} == {}


def test_imports_are_recognised(tmp_path):
    file = tmp_path / "nn" / "linear.py"
    file.parent.mkdir()
    file.write_text(
        "import torch.nn, bitwright.export\n"
        "from torch import nn\n"
        "from bitwright import __version__\n"
        "from bitwright.qcore.scaling import Scaling\n"
        "from .base import Base\n"
        "from ..quantizers import Int8Act\n"
        "from .. import graph\n"
    )
    by_name = {"bitwright.export", "bitwright.__version__", "bitwright.qcore.scaling.Scaling"}
    assert imported(file) == by_name | {"nn", "quantizers", "graph"}


def test_front_door_is_light():
    """Everything heavy waits until it is imported by name."""
    code = "import sys, bitwright; print(bitwright.__version__, sorted({'torch', 'numpy', 'onnx'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{bitwright.__version__} []\n"


# Python's own finder, which does not find some packages.
FINDER = """
import sys
from importlib.machinery import PathFinder

absent = set(sys.argv[1:])

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
# An install without extras: every module can be imported, but for bitwright.testing, which says what it needs.
EVERY = f"""
import importlib, pkgutil, warnings
import torch  # which warns that there is no numpy

absent |= {{"hypothesis", "matplotlib", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}}
absent |= {{"qonnx", "safetensors", "scipy"}}
with warnings.catch_warnings(action="error"):
    for package in {[name for name in PACKAGES[1:] if not name.startswith("bitwright.testing")]}:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
            importlib.import_module(module.name)
assert not absent & sys.modules.keys()
assert "bitwright.export.onnx.exporter" in sys.modules
absent.intersection_update(sys.argv[1:])
"""
# Calls that need the packages.
ABSENT = """
import torch
from bitwright import nn as qnn
from bitwright.export import export_onnx_integer, export_onnx_qcdq, export_onnx_qdq, integers, verify_onnx
from bitwright.export import Integers, compare_integers, run_integers
from bitwright.quantizers import Int8Act, Int32Bias

model = qnn.QuantLinear(4, 2, input_quant=Int8Act(scale=0.1), bias_quant=Int32Bias).eval()
x = torch.ones(2, 4)

def check_quantizer():
    from bitwright.testing import check_quantizer

def plot_quantizer():
    from bitwright.testing import plot_quantizer
    plot_quantizer(Int8Act)

def told(call, *packages):
    absent.update(packages)
    try:
        call()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    absent.difference_update(packages)
"""
EACH = """
told(check_quantizer, "hypothesis")
told(plot_quantizer, "matplotlib")
for package in ("onnx", "onnxscript"):  # each before anything imports it
    for call in (export_onnx_qcdq, export_onnx_qdq, export_onnx_integer):
        told(lambda: call(model, x), package)
told(lambda: verify_onnx(model, export_onnx_qcdq(model, x, verify=False), x), "onnxruntime")
told(lambda: integers(model, x).save_safetensors("none"), "safetensors")
"""
NUMPY = """
told(check_quantizer)
taken = integers(model, x)
told(lambda: taken.save_npz("none"))
told(lambda: taken.save_safetensors("none"))
open("none.npz", "wb").write(b"PK\\x03\\x04")
told(lambda: Integers.load("none.npz"))
for call in (export_onnx_qcdq, export_onnx_qdq, export_onnx_integer):
    told(lambda: call(model, x))
told(lambda: verify_onnx(model, "none.onnx", x))
told(lambda: compare_integers(model, x, program="none.onnx"))
assert "int8_t" in taken.to_c_header()
assert run_integers(model, x).integer_only
"""


@pytest.mark.parametrize(
    ("absent", "calls", "expected"),
    [
        (
            [],
            ABSENT + EACH,
            [
                "ModuleNotFoundError: bitwright.testing needs the package hypothesis: pip install bitwright[testing]",
                "BitwrightError: plot_quantizer needs the package matplotlib: pip install bitwright[plot]",
                "ExportError: export_onnx_qcdq needs the package onnx: pip install bitwright[onnx]",
                "ExportError: export_onnx_qdq needs the package onnx: pip install bitwright[onnx]",
                "ExportError: export_onnx_integer needs the package onnx: pip install bitwright[onnx]",
                "ExportError: export_onnx_qcdq needs the package onnxscript: pip install bitwright[onnx]",
                "ExportError: export_onnx_qdq needs the package onnxscript: pip install bitwright[onnx]",
                "ExportError: export_onnx_integer needs the package onnxscript: pip install bitwright[onnx]",
                "ExportError: verify_onnx needs the package onnxruntime: pip install bitwright[onnx]",
                "ExportError: save_safetensors needs the package safetensors: pip install safetensors",
            ],
        ),
        (
            ["numpy"],
            EVERY + ABSENT + NUMPY,
            [
                "ModuleNotFoundError: bitwright.testing needs the package numpy: pip install bitwright[testing]",
                "ExportError: save_npz needs the package numpy: pip install numpy",
                "ExportError: save_safetensors needs the package numpy: pip install numpy",
                "ExportError: Integers.load needs the package numpy: pip install numpy",
                "ExportError: export_onnx_qcdq needs the package numpy: pip install bitwright[onnx]",
                "ExportError: export_onnx_qdq needs the package numpy: pip install bitwright[onnx]",
                "ExportError: export_onnx_integer needs the package numpy: pip install bitwright[onnx]",
                "ExportError: verify_onnx needs the package numpy: pip install bitwright[onnx]",
                "ExportError: compare_integers needs the package numpy: pip install bitwright[onnx]",
            ],
        ),
    ],
    ids=["each", "numpy"],
)
def test_an_absent_package_is_named_with_the_command_that_installs_it(tmp_path, absent, calls, expected):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{FINDER}{calls}")
    command = [sys.executable, "-W", "ignore", script, *absent]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == expected, ran.stderr


def test_front_door_is_typed():
    assert (Path(bitwright.__file__).parent / "py.typed").is_file()


def test_version_of_the_install():
    try:
        installed = distribution("bitwright").version
    except PackageNotFoundError:
        pytest.skip("bitwright is not installed, it runs from the checkout")
    assert installed == bitwright.__version__


@only_on_wheel
def test_wheel_brings_one_name():
    """Folders named nn, export or quantizers at the top of site-packages would be other people's packages."""
    top = {file.parts[0] for file in distribution("bitwright").files or []}
    assert top == {"bitwright", f"bitwright-{bitwright.__version__}.dist-info"}


@only_in_checkout
@pytest.mark.parametrize("file", [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]])
def test_what_the_metadata_names_is_there(file):
    assert (ROOT / file).is_file()


def lower_bounds():
    """What an install may bring at the least, by package; the tools of development aside."""
    extras = [lines for extra, lines in PROJECT["project"]["optional-dependencies"].items() if extra != "dev"]
    asked = [Requirement(line) for lines in [PROJECT["project"]["dependencies"], *extras] for line in lines]
    return {(each.name, spec.version) for each in asked for spec in each.specifier if spec.operator == ">="}, asked


def test_every_requirement_has_one_lower_bound():
    bounds, asked = lower_bounds()
    assert len(bounds) == len({each.name for each in asked})
    assert {name for name, _ in bounds} == {each.name for each in asked}


@only_in_checkout
def test_the_table_of_tested_versions_begins_with_the_lower_bounds():
    """The promise is what passed: `make test-versions`, which leaves this test out, makes the table."""
    _, _, table = (ROOT / "docs/versions.md").read_text(encoding="utf-8").partition("| environment")
    rows = [line.strip("|").split("|") for line in f"| environment{table}".splitlines() if line.startswith("|")]
    oldest = {name.strip(): cell.strip() for name, cell in zip(rows[0], rows[2], strict=True)}
    assert oldest["environment"] == "oldest"
    assert PROJECT["project"]["requires-python"] == ">=" + ".".join(oldest["Python"].split(".")[:2])
    promised = {name: Version(version) for name, version in lower_bounds()[0]}
    assert {name: Version(oldest[name]) for name in promised} == promised
    runs = [{name.strip(): cell.strip() for name, cell in zip(rows[0], row, strict=True)} for row in rows[2:]]
    assert [run["environment"] for run in runs if run["failed"] != "0" or run["passed"] == "0"] == []
    assert any(run["environment"].startswith("newest-") for run in runs)


@only_in_checkout
def test_every_requirement_has_a_tested_version():
    project = PROJECT["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    asked = [*PROJECT["build-system"]["requires"], *project["dependencies"], *extras, "mlxtend"]
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    pinned = {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in pins}
    for requirement in map(Requirement, asked):
        version = str(pinned[canonicalize_name(requirement.name)]).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement}, but tested with {version}"


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_hides_a_module(name):
    """`import bitwright.export.integers` would give a function."""
    package = importlib.import_module(name)
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    hidden = [each for each in modules & set(vars(package)) if not isinstance(vars(package)[each], ModuleType)]
    assert hidden == []


def test_front_door_opens_lazily():
    code = "import sys, bitwright; print('torch' in sys.modules, bitwright.nn.QuantLinear, bitwright.describe)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("False <class 'bitwright.nn.linear.QuantLinear'> <function describe at")
    assert set(bitwright.__all__) <= set(dir(bitwright))
    with pytest.raises(AttributeError, match=r"^module 'bitwright' has no attribute 'layers'$"):
        getattr(bitwright, "layers")  # noqa: B009 - as a statement it would be taken for useless


def modules_imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the repository that a file imports, wherever in it; not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(path.relative_to(ROOT).parts[: -node.level])
            module = ".".join(part for part in (base, node.module) if part)
            names = {f"{module}.{each.name}" for each in node.names}
            found |= (names & modules.keys()) or {module}
    return found & modules.keys()


@only_in_checkout
def test_modules_import_in_no_circle():
    paths = [path for folder in FOLDERS.values() for path in (ROOT / folder).glob("*.py")]
    named = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    modules = {name: path for path, name in named.items()}
    graph = {name: modules_imported(path, modules) for name, path in modules.items()}
    assert graph["nn.linear"] >= {"nn.weight_layer"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


@only_in_checkout
def test_no_folder_is_crowded():
    crowded = {folder: len([*(ROOT / folder).glob("*.py")]) for folder in FOLDERS.values()}
    assert {folder: count for folder, count in crowded.items() if count > 15} == {}
