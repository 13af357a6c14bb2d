"""The documentation runs: every Python block of README.md and docs/*.md, and every example in a docstring."""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import linecache
import math
import pkgutil
import re
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bitwright import nn, qcore, quantizers
from bitwright.export.onnx.dialects import EXPORTER_OPSET, QCDQ, QDQ
from bitwright.qcore.declare.inject import QuantizerType, settings
from bitwright.testing import CHECKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
PACKAGES = [importlib.import_module(name) for name in LISTED if name != "bitwright"]
MODULES = ["bitwright", *(package.__name__ for package in PACKAGES)]
MODULES += [f"{each.__name__}.{found.name}" for each in PACKAGES for found in pkgutil.iter_modules(each.__path__)]

# Pages

NEEDED = ("qonnx", "transformers")  # packages that some blocks run with


@dataclass
class Block:
    """A fenced block. `kind` is its info string; `says` the text block that directly follows, if there is one."""

    kind: str
    line: int  # of its first line of code
    end: int  # of its closing fence
    code: str
    says: str | None = None


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page, also those that are indented in a list."""
    lines = text.splitlines()
    blocks: list[Block] = []
    number = 0
    while number < len(lines):
        opening = re.match(r"( *)```(.*)", lines[number])
        number += 1
        if opening is None:
            continue
        indent, since = opening[1], number
        while lines[number].rstrip() != indent + "```":
            number += 1
            assert number < len(lines), f"the block of line {since} is not closed"
        code = "".join(f"{line.removeprefix(indent)}\n" for line in lines[since:number])
        following = blocks and opening[2] == "text" and not "".join(lines[blocks[-1].end : since - 1]).strip()
        number += 1
        if following:
            blocks[-1].says = code
        blocks.append(Block(opening[2].strip(), since + 1, number, code))
    return blocks


def run_page(path: Path, folder: Path) -> None:
    """Run a page's Python blocks, in order, as one module: pickle, inspect and tracebacks find its lines.

    What a block prints is what the text block after it says. A block marked ``python raises`` ends in the error that
    the text block after it shows. One marked ``python needs PACKAGE`` runs where that is installed.
    """
    blocks = [block for block in blocks_of(path.read_text(encoding="utf-8")) if block.kind.startswith("python")]
    source = [""] * max((block.line + block.code.count("\n") for block in blocks), default=0)
    for block in blocks:
        source[block.line - 1 : block.line - 1 + block.code.count("\n")] = block.code.splitlines()
    name = path.stem.replace("-", "_").lower()
    file = folder / f"{name if name not in NEEDED else f'{name}_page'}.py"
    file.write_text("\n".join(source), encoding="utf-8")
    linecache.checkcache(str(file))
    module = types.ModuleType(file.stem)
    module.__file__ = str(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, file.stem, module)
        for block in blocks:
            run_block(block, module, path)


def run_block(block: Block, module: types.ModuleType, path: Path) -> None:
    """Run one block in the namespace of its page."""
    where = f"{path.name}, line {block.line}"
    needed = block.kind.removeprefix("python needs ")
    if needed != block.kind and importlib.util.find_spec(needed) is None:
        return
    compiled = compile("\n" * (block.line - 1) + block.code, str(module.__file__), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.kind == "python raises":
            with pytest.raises(Exception) as raised:  # noqa: PT011 - the page says which
                exec(compiled, module.__dict__)
            found = f"{type(raised.value).__name__}: {raised.value}"
            assert block.says is not None, f"{where}: say what it raises, in a text block"
            assert found.split() == block.says.split(), f"{where} raises\n{found}"
            return
        exec(compiled, module.__dict__)
    found = printed.getvalue()
    assert not (found and block.says is None), f"{where} prints, and no text block after it says what:\n{found}"
    assert without_lines(found) == without_lines(block.says or ""), f"{where} prints\n{found}"


def without_lines(text: str) -> str:
    """Text without the numbers of lines, as in ``bitwright.quantizers.base:16``: they move."""
    return re.sub(r"(?<=\w):\d+\b", ":", text).strip()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(CHECKS)  # a page may register a check of its own
    try:
        with torch.random.fork_rng():
            run_page(path, tmp_path)
    finally:
        CHECKS.clear()
        CHECKS.update(before)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_blocks_are_of_a_known_kind(path):
    kinds = {block.kind for block in blocks_of(path.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "python raises", "text", "bash"} | {f"python needs {name}" for name in NEEDED}


@pytest.mark.skipif(not (ROOT / "bitwright").is_dir(), reason="about the checkout, and this is a run on the wheel")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Of links into the repository; other addresses are not asked for."""
    found = re.findall(r"\]\(([^)#:\s]*)(#[^)\s]*)?\)", prose(path))
    assert [link for link, _ in found if link and not (path.parent / link).exists()] == []
    for link, anchor in found:
        target = path.parent / link if link else path
        if anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", prose(target), flags=re.MULTILINE)
            assert anchor[1:] in {slug(title) for title in titles}, f"{link}{anchor}"


def prose(path: Path) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PAGES[1:] if f"(docs/{path.name})" not in readme] == []


@pytest.mark.parametrize(
    "page",
    [
        "```python\nassert False\n```",
        "```python\nprint(1)\n```\n\n```text\n2\n```",
        "```python\nprint(1)\n```",
        "```python\nprint(1)\n```\n\nprose\n\n```text\n1\n```",
        "```python raises\n1 / 0\n```\n\n```text\nKeyError: 1\n```",
        "```python raises\n1 / 0\n```",
        "```python raises\n1 / 1\n```\n\n```text\nKeyError: 1\n```",
        "- item\n  ```python\n  assert False\n  ```",
        "```python\nx = 1\n",
    ],
)
def test_a_wrong_page_fails(page, tmp_path):
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_page(tmp_path / "page.md", tmp_path)


def test_a_right_page_passes(tmp_path):
    blocks = ["```python\nx = 0\nprint(x)\n```", "```text\n0\n```", "```python raises\n1 / x\n```"]
    page = "\n\n".join([*blocks, "```text\nZeroDivisionError:\ndivision by zero\n```"])
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    run_page(tmp_path / "page.md", tmp_path)


# Tables


def table(heading: str, column: str, page: str = "quantizers.md") -> list[dict[str, str]]:
    """The rows of the table below a heading of a page whose first column has that title, by column."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    found = re.search(rf"^\| {column} \|.*\n(\|.*\n)+", below, flags=re.MULTILINE)
    assert found is not None, f"{page}: no table with the column {column} below {heading}"
    header, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[0].splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def names(cell: str) -> list[str]:
    """What a cell has in backticks."""
    return re.findall(r"`([^`]*)`", cell)


SHIPPED = [row for heading in ("Weights", "Activations", "Biases") for row in table(heading, "Quantizer")]


def test_tables_list_exactly_the_shipped_quantizers():
    page = (ROOT / "docs" / "quantizers.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| (?:Quantizer|Fragment) \|.*\n\| ---.*\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    listed = [name for rows in tables for row in rows.splitlines() for name in names(row.split("|")[1])]
    shipped = [name for name in quantizers.__all__ if isinstance(getattr(quantizers, name), QuantizerType)]
    assert sorted(listed) == sorted(shipped)


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: row["Quantizer"].strip("`"))
def test_row_says_what_the_quantizer_is(row):
    """Integers and granularity, against the class; the Brevitas name, against its docstring."""
    (name,) = names(row["Quantizer"])
    found = {each: setting.injected for each, setting in settings(getattr(quantizers, name)).items()}
    low, high = qcore.int_bounds(found["bit_width"], found["signed"], found["narrow_range"])
    assert row["Integers"] == f"{low} to {high}".replace("-", "\N{MINUS SIGN}")
    assert ("PerChannel" in name) == ("axis" in found and found["axis"] is not None)
    assert ("PerGroup" in name) == (found.get("group_size") == 32)
    docstring = inspect.getdoc(getattr(quantizers, name)) or ""
    said = re.findall(r"Brevitas: ``(\w+)``", docstring)
    assert said == [each for each in names(row["Brevitas"]) if row["Brevitas"] == f"`{each}`"]


@pytest.mark.parametrize("row", table("Floats", "Quantizer"), ids=lambda row: row["Quantizer"].strip("`"))
def test_row_says_which_floats(row):
    for name in names(row["Quantizer"]):
        number_format = built(name).number_format
        assert isinstance(number_format, qcore.Minifloat)
        bits = (number_format.exponent_bits, number_format.mantissa_bits)
        assert bits == (int(row["Exponent bits"]), int(row["Mantissa bits"]))
        assert number_format.high == float(row["Largest"])
        smallest = min(level for level in number_format.levels if level > 0)
        assert f"2^{math.frexp(smallest)[1] - 1}" == row["Smallest"]
        assert number_format.infinities == ("infinities" in row["Special codes"])
        assert number_format.nan == ("NaN" in row["Special codes"])
        assert number_format.negative_zero == ("no -0" not in row["Special codes"])


@pytest.mark.parametrize("row", table("Microscaling", "Quantizer"), ids=lambda row: row["Quantizer"].strip("`"))
def test_row_says_which_groups(row):
    for name in names(row["Quantizer"]):
        levels, groups, scales = built(name).scheme().split(", ")
        assert levels == row["Elements"]
        assert groups == f"groups of {row['Group']} along axis {1 if 'Weight' in name else -1}"
        assert scales == {"powers of two": "MX (floor) scale", "e4m3fn": "two-level (e4m3fn) scale"}[row["Scales"]]


@pytest.mark.parametrize("row", table("Dynamic activations", "Quantizer"), ids=lambda row: row["Quantizer"].strip("`"))
def test_row_says_which_dynamic_scale(row):
    (name,) = names(row["Quantizer"])
    quant = built(name)
    levels, granularity, _, *zero_point = quant.scheme().split(", ")
    where = {"per token": ", per token", "per tensor": ""}.get(granularity, ", per group of 32")
    found = "width of the range, with zero point" if zero_point else "largest magnitude"
    assert (row["Levels"], row["Scale"]) == (levels, f"{found}{where}")
    assert quant.dynamic
    said = re.findall(r"Brevitas: ``(\w+)``", inspect.getdoc(getattr(quantizers, name)) or "")
    assert said == [each for each in names(row["Brevitas"]) if row["Brevitas"] == f"`{each}`"]


def built(name: str) -> qcore.TensorQuant:
    """What a quantizer resolves to, for a weight of 4 outputs or an activation."""
    provided = {"channel_axis": 0, "shape": (4, 64)} if "Weight" in name else {}
    return qcore.resolve(getattr(quantizers, name), provided)


def test_layers_are_listed_with_their_defaults():
    rows = table("Layers", "Layers", "layers.md")
    listed = {name: names(row["Default"])[0] for row in rows for name in names(row["Layers"])}
    found = {}
    for name in (each for each in nn.__all__ if each.startswith("Quant")):
        slots = inspect.signature(getattr(nn, name)).parameters
        if name == "QuantLayer":  # the base of them all
            continue
        quantizers = [each for each in slots if each.endswith("_quant")]
        first = next((each for each in ("weight_quant", "act_quant") if each in quantizers), quantizers[0])
        found[name] = repr(slots[first].default)
    assert listed == found


def test_types_are_those_of_the_dialects():
    rows = table("Two dialects", "Type", "export.md")
    for form in (QCDQ, QDQ):
        listed = [(names(row["Type"]), row["Bits"], row["Opset"]) for row in rows if row[form.name]]
        pairs = zip(form.types[::2], form.types[1::2], strict=True)
        assert listed == [
            ([one.name, two.name], str(one.bits), str(max(one.opset, EXPORTER_OPSET))) for one, two in pairs
        ]


# The attributes that a quantizer may have, by the classes that take them

FROM_THE_LAYER = {"device", "dtype", "shape", "channels", "channel_axis"}
CONSUMERS = [
    *(each for choices in (qcore.SCALINGS, qcore.STATISTICS) for each in choices.values()),
    *(each for choices in (qcore.RESTRICTIONS, qcore.ROUNDINGS, qcore.ZERO_POINTS) for each in choices.values()),
    *(qcore.GridQuant, qcore.IntQuant, qcore.BiasQuant, qcore.IntRange, qcore.LearnedBitWidth),
]


def consumers() -> dict[str, set[str]]:
    """For each attribute, the names of the classes whose constructors take it."""
    found: dict[str, set[str]] = {}
    for each in CONSUMERS:
        if each.__init__ is not object.__init__:
            for name in list(inspect.signature(each).parameters):
                found.setdefault(name, set()).add(each.__name__)
    return {name: users for name, users in found.items() if name not in FROM_THE_LAYER}


ATTRIBUTES = {names(row["Attribute"])[0]: row for row in table("Attributes", "Attribute")}


def test_every_attribute_is_in_the_vocabulary():
    assert sorted(ATTRIBUTES) == sorted({*consumers(), "tensor_quant"})


@pytest.mark.parametrize("attribute", sorted(consumers()))
def test_vocabulary_names_the_consumers(attribute):
    listed = set(names(ATTRIBUTES[attribute]["Used by"]))
    scalings = {each.__name__ for each in qcore.SCALINGS.values()}
    if "every scaling" in ATTRIBUTES[attribute]["Used by"]:
        listed |= scalings
    assert listed == consumers()[attribute]


@pytest.mark.parametrize("title", ["scaling", "statistic", "restriction", "rounding", "transform", "zero_point"])
def test_choices_are_listed(title):
    """Every string that an attribute may be written as, with its class."""
    choices = getattr(qcore, f"{title.upper()}S")
    rows = [(names(row["Written"])[0].strip('"'), names(row["Class"])[0]) for row in table(f"`{title}`", "Written")]
    assert rows == [(name, each.__name__) for name, each in choices.items()]


def test_roundings_do_what_the_table_says():
    for row in table("`rounding`", "Written")[:-2]:  # the last two are random, and learned
        (example,) = (column for column in row if "become" in column)
        numbers = [
            [float(each) for each in re.findall(r"-?[\d.]+", text.replace("\N{MINUS SIGN}", "-"))[:4]]
            for text in (example, row[example])
        ]
        rounding = qcore.ROUNDINGS[names(row["Written"])[0].strip('"')]()
        assert rounding(torch.tensor(numbers[0])).tolist() == numbers[1]


# Docstrings


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    report = io.StringIO()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def is_data(item: object) -> bool:
    """A quantizer whose body only sets attributes: its base's example serves."""
    own = {name: each for name, each in vars(item).items() if not name.startswith("__")}
    plain = not any(inspect.isfunction(each) or isinstance(each, qcore.value) for each in own.values())
    return isinstance(item, QuantizerType) and plain


PUBLIC = [(package.__name__.partition(".")[2], name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda part: part)
def test_public_name_has_a_docstring_with_an_example(package, name):
    item = getattr(importlib.import_module(f"bitwright.{package}"), name)
    if not (inspect.isclass(item) or inspect.isroutine(item)):
        pytest.skip("a dict or a module: what is in it has docstrings of its own")
    own = item.__doc__ or ""
    assert own.strip(), f"{name} has no docstring of its own"
    assert is_data(item) or ">>> " in own, f"{name} has no example"
