"""Places in a model's code where a function is called, and what rules say of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ...nn import QuantFunction, QuantLayer
from ...qcore import QuantizerError
from ..errors import GraphError
from ..layers.class_change import device_and_dtype
from ..layers.table import slot_names
from ..recording.kinds import name_of
from ..recording.nodes import Graph, Node
from ..recording.places import Place
from ..rewriting import function_at, interpose
from ..rules.given import Given
from ..rules.rules import Rule
from .producers import never_negative
from .signs import WHY, can_be_unsigned

__all__ = ["Edits", "Site", "choose_sites", "convert_sites", "interposed", "is_wildcard", "is_written", "sites_of"]

_OPTIONS = ("share", "operands", "inplace", "return_quant_tensor")
_NAMED = {"attention": {"query_": "input_1_", "key_": "input_2_", "value_": "input_3_"}}
"""Operands of functions that have names, too, by the kind of function. Other tensors that it takes are no operands."""


@dataclass(eq=False)
class Site:
    """One place where a function is called, and what is decided for it.

    Attributes:
        path: its name, which works like that of a layer: "layer1.0.add".
        nodes: the calls that were recorded there.
        settings: keyword arguments of `QuantFunction`; None: it stays float.
        float_reason: why it stays float.
    """

    path: str
    nodes: list[Node]
    settings: dict[str, Given] | None = None
    float_reason: str = "no rule is for it"

    @property
    def node(self) -> Node:
        """The first call."""
        return self.nodes[0]

    def keywords(self) -> dict[str, object]:
        """The settings without their rules."""
        return {keyword: given.value for keyword, given in (self.settings or {}).items()}


def sites_of(graph: Graph) -> list[Site]:
    """The places of all calls of functions, in the order of the first call.

    Example:
        >>> import torch
        >>> from ..recording.recorder import record
        >>> class Sum(nn.Module):
        ...     def forward(self, x):
        ...         return x + x
        >>> [site.path for site in sites_of(record(Sum(), torch.ones(2)))]
        ['add']
    """
    found: dict[str, Site] = {}
    for node in graph.functions():
        found.setdefault(node.path, Site(node.path, [])).nodes.append(node)
    return list(found.values())


def is_wildcard(glob: str) -> bool:
    """Whether a glob may mean more than one path.

    Example:
        >>> is_wildcard("layer1.*"), is_wildcard("layer1.0.add")
        (True, False)
    """
    return any(sign in glob for sign in "*?[")


Edits = dict[str, list[tuple[Place, str, Node]]]
"""For the path of a module, the places in its code in which it is to call a submodule of that name."""


def is_written(owner: nn.Module, place: Place, node: Node) -> bool:
    """Whether a call can be rewritten where it stands.

    Example:
        >>> import torch
        >>> from ..recording.recorder import record
        >>> model = nn.Sequential(nn.ReLU())
        >>> node = record(model, torch.ones(1)).node("0")
        >>> assert node.place is not None
        >>> is_written(model, node.place, node)
        False
    """
    try:
        function_at(owner, place, node)
    except GraphError:
        return False
    return True


def interposed(model: nn.Module, edits: Edits) -> list[str]:
    """Let modules call their new submodules; where that can't be done, the submodules go.

    Returns:
        The paths of the submodules that are called.

    Example:
        >>> interposed(nn.Sequential(), {})
        []
    """
    made: list[str] = []
    for path, found in edits.items():
        owner = model.get_submodule(path)
        try:
            interpose(owner, found)
            made += [f"{path}.{name}" if path else name for _, name, _ in found]
        except GraphError:
            for _, name, _ in found:
                del owner._modules[name]
    return made


def choose_sites(sites: Sequence[Site], rules: Iterable[Rule]) -> set[int]:
    """Apply rules to places of functions; those that a rule for a function, or their very path, names are quantized.

    Returns:
        The numbers of the rules that match a place.

    Raises:
        GraphError: a rule for a function matches nothing, or has a setting that no function can use.
    """
    matched: set[int] = set()
    rules = list(rules)
    for rule in rules:
        if rule.is_function:
            found = [site for site in sites if site.node.kind == name_of(rule.where)]
            if not found:
                counts = Counter(site.node.kind for site in sites)
                listed = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common()) or "none"
                raise GraphError(
                    f"quantize: the rule {rule} matched nothing: the examples reach no call of it. The functions that "
                    f"they reach are {listed}."
                )
            _check(rule)
        elif isinstance(rule.where, str):
            wild = is_wildcard(rule.where)
            found = [site for site in sites if fnmatchcase(site.path, rule.where)]
            found = [site for site in found if not wild or site.settings is not None or rule.settings is None]
        else:
            continue
        for site in found:
            matched.add(rule.index)
            _apply(rule, site)
    by_name = {rule.index: rule for rule in rules if rule.index in matched and not _is_wild(rule)}
    for site in sites:
        _drop_homeless(site, by_name)
    return matched


def _is_wild(rule: Rule) -> bool:
    return isinstance(rule.where, str) and is_wildcard(rule.where)


def _check(rule: Rule) -> None:
    if rule.layer is not None:
        raise GraphError(
            f"quantize: the rule {rule} says {rule.layer.__name__}, and functions become qnn.QuantFunction. Write its "
            "keywords, such as dict(input_quant=Int8Act)."
        )
    kind = name_of(rule.where)
    for keyword, value in (rule.settings or {}).items():
        if not _has_place(_by_number(kind, keyword)):
            named = "".join(f", {name}quant" for name in _NAMED.get(kind, ()))
            raise GraphError(
                f"quantize: {keyword}={value!r} of the rule {rule} is for no quantizer of a function. Write "
                f"input_quant{named} for its operands, act_quant for its result."
            )


def _by_number(kind: str, keyword: str) -> str:
    """A keyword for an operand that has a name, as one for the operand of that number; any other as it is."""
    for name, number in _NAMED.get(kind, {}).items():
        if keyword.startswith(name):
            return number + keyword.removeprefix(name)
    return keyword


def _has_place(keyword: str) -> bool:
    prefix = next((name for name in slot_names() if keyword.startswith(f"{name}_")), None)
    return prefix in (None, "act", "input")


def _apply(rule: Rule, site: Site) -> None:
    if rule.settings is None:
        site.settings, site.float_reason = None, f"by the rule {rule}"
        return
    settings = site.settings if site.settings is not None else {}
    for slot in ("act", "input"):
        if f"{slot}_quant" in rule.settings:
            for keyword in [each for each in settings if _slot_of(each) == slot]:
                del settings[keyword]
    numbered = {_by_number(site.node.kind, keyword): value for keyword, value in rule.settings.items()}
    own = {keyword: value for keyword, value in numbered.items() if _has_place(keyword)}
    if own or site.settings is not None:
        site.settings, site.float_reason = settings, ""
        settings |= {keyword: Given(value, (str(rule),), (rule.index,)) for keyword, value in own.items()}


def _slot_of(keyword: str) -> str | None:
    """The slot of a function that a keyword is for."""
    if keyword in _OPTIONS:
        return None
    return "input" if keyword.startswith("input_") else "act"


def _drop_homeless(site: Site, by_name: Mapping[int, Rule]) -> None:
    """Leave out what wildcards set for a slot without a quantizer; other rules must mean one that there is."""
    if site.settings is None:
        return
    operand = any(key.startswith("input_") and key.endswith("_quant") for key in site.settings)
    homes = {"input": operand, "act": "act_quant" in site.settings, None: operand or "act_quant" in site.settings}
    for keyword, given in list(site.settings.items()):
        slot = _slot_of(keyword)
        if homes[slot]:
            continue
        rule = next((by_name[number] for number in given.rules if number in by_name), None)
        if rule is not None:
            raise GraphError(
                f"quantize: {keyword}={given.value!r} of the rule {rule} changes no quantizer: {slot or 'input'}_quant "
                f"is None in {site.path}. Write {slot or 'input'}_quant=Int8Act too."
            )
        del site.settings[keyword]


def choose_site_signs(sites: Iterable[Site]) -> None:
    """Make quantizers of operands and results unsigned that are never negative."""
    for site in sites:
        if site.settings is None:
            continue
        act = site.settings.get("act_quant")
        positive = all(never_negative((node, 0)) for node in site.nodes)
        if positive and act is not None and "signed" not in site.settings and can_be_unsigned(act.value):
            site.settings["signed"] = Given(False, (WHY,))
        operands = site.settings.get("input_quant")
        if operands is None or "input_signed" in site.settings or not can_be_unsigned(operands.value):
            continue
        share = "share" in site.settings and site.settings["share"].value
        signs = [all(map(never_negative, each)) for each in _operands(site)]
        if signs and all(signs):
            site.settings["input_signed"] = Given(False, (WHY,))
        elif not share and any(signs):
            count = len(signs)
            site.settings.setdefault("operands", Given(count, ()))
            for number, positive in enumerate(signs, 1):
                if positive and f"input_{number}_signed" not in site.settings:
                    site.settings[f"input_{number}_signed"] = Given(False, (WHY,))


def _operands(site: Site) -> list[list[tuple[Node, int] | None]]:
    """What each operand comes from, over all calls that have as many."""
    most = len(_NAMED.get(site.node.kind, ())) or None
    lists = [inputs[:most] for node in site.nodes for inputs in (node.inputs, *node.alternatives)]
    if len({len(each) for each in lists}) != 1:
        return []
    return [list(each) for each in zip(*lists, strict=True)]


def convert_sites(model: nn.Module, sites: Iterable[Site]) -> None:
    """Let the code of the model call a `QuantFunction` in each place that has settings.

    Raises:
        GraphError: the place can't be rewritten, or a setting is impossible.
    """
    owners: dict[str, list[Site]] = {}
    for site in sites:
        if site.settings is not None:
            owners.setdefault(site.node.owner, []).append(site)
    for path, found in owners.items():
        owner = model.get_submodule(path)
        edits = []
        for site in found:
            node = site.node
            if node.place is None:
                raise GraphError(
                    f"{site.path}: where {node.kind} is called in the code of {type(owner).__name__} can't be found, "
                    f"so it can't be given a quantizer. Write self.{node.name} = qnn.QuantFunction(...) there, or "
                    f'"{site.path}": None.'
                )
            owner.add_module(node.name, _layer(owner, model, site))
            edits.append((node.place, node.name, node))
        interpose(owner, edits)


def _layer(owner: nn.Module, model: nn.Module, site: Site) -> QuantLayer:
    assert site.node.place is not None
    function = function_at(owner, site.node.place, site.node)
    device, dtype = device_and_dtype(owner, model)
    keywords: Mapping[str, object] = site.keywords()
    if "input_quant" in keywords and "operands" not in keywords and not keywords.get("share"):
        operands = len(site.node.inputs[: len(_NAMED.get(site.node.kind, ())) or None])
        keywords = {**keywords, "operands": operands} if operands else keywords
    try:
        layer = QuantFunction(function, device=device, dtype=dtype, **keywords)  # type: ignore[arg-type]
    except QuantizerError as error:
        by = Given.by((site.settings or {}).values())
        raise GraphError(f"quantize: {site.path}, by the rule {by}: {error}") from None
    return layer.train(owner.training)
