"""Editing graphs: what is shared, what it is called, and what takes whose place."""

import pytest
import torch

ir = pytest.importorskip("onnx_ir")

from bitwright.export.onnx.editing import Editor  # noqa: E402 - needs onnx_ir


def graph(outputs=("y",)):
    """``x -> Relu -> a -> Neg -> y``, and an unused initializer ``spare``."""
    x = ir.val("x", ir.DataType.FLOAT, (2, 3))
    relu = ir.node("Relu", [x], name="relu")
    neg = ir.node("Neg", relu.outputs, name="neg")
    for node, name in ((relu, "a"), (neg, "y")):
        node.outputs[0].name = name
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape((2, 3))
    values = {"a": relu.outputs[0], "y": neg.outputs[0]}
    spare = ir.val("spare", const_value=ir.tensor([1.0]))
    made = ir.Graph([x], [values[each] for each in outputs], nodes=[relu, neg], initializers=[spare])
    return ir.Model(made, ir_version=10), relu, neg


def names(model):
    return [(node.op_type, [each.name for each in node.inputs], node.outputs[0].name) for node in model.graph]


def test_initializers_are_shared_by_content_under_one_name():
    model, *_ = graph()
    editor = Editor(model)
    one = editor.constant("fc.scale", torch.tensor([0.5, 2.0]), "FLOAT")
    assert editor.constant("fc.scale", torch.tensor([0.5, 2.0]), "FLOAT") is one
    other = editor.constant("fc.scale", torch.tensor([0.5, 3.0]), "FLOAT")
    shaped = editor.constant("fc.scale", torch.tensor([[0.5], [2.0]]), "FLOAT", otherwise="fc.1.scale")
    assert (one.name, other.name, shaped.name) == ("fc.scale", "fc.scale.1", "fc.1.scale")
    assert editor.constant("fc.scale", torch.tensor([[0.5], [2.0]]), "FLOAT") is shaped
    assert editor.constant("conv.scale", torch.tensor([0.5, 2.0]), "FLOAT").name == "conv.scale"
    assert set(model.graph.initializers) == {"spare", "fc.scale", "fc.scale.1", "fc.1.scale", "conv.scale"}


def test_initializers_have_the_type_asked_for():
    editor = Editor(graph()[0])
    codes = editor.constant("codes", torch.tensor([[-8, 7, 1]]), "INT4")
    assert (codes.dtype, list(codes.shape)) == (ir.DataType.INT4, [1, 3])
    assert codes.const_value.numpy().astype(int).tolist() == [[-8, 7, 1]]


def test_names_that_are_taken_get_a_number():
    model, relu, _ = graph()
    editor = Editor(model)
    assert [editor.unused(name) for name in ("a", "x", "spare", "new", "new")] == [
        "a.1",
        "x.1",
        "spare.1",
        "new",
        "new.1",
    ]
    assert editor.add(relu, "Abs", [relu.inputs[0]], "a", like=relu.outputs[0]).name == "a.2"


def test_nodes_lie_in_front_or_behind_and_have_a_type():
    model, relu, _ = graph()
    editor = Editor(model)
    cast = editor.add(
        relu, "Cast", [relu.inputs[0]], "c", {"to": 6}, like=relu.outputs[0], kind="INT32", called="named"
    )
    behind = editor.add(relu, "Abs", [relu.outputs[0]], "b", like=relu.outputs[0], after=True)
    assert [node.op_type for node in model.graph] == ["Cast", "Relu", "Abs", "Neg"]
    assert (cast.producer().name, cast.dtype, list(cast.shape)) == ("named", ir.DataType.INT32, [2, 3])
    assert (behind.producer().name, behind.dtype) == ("b", ir.DataType.FLOAT)


def test_an_output_keeps_its_name():
    model, _, neg = graph()
    editor = Editor(model)
    value = editor.add(neg, "Abs", list(neg.inputs), "abs", like=neg.outputs[0])
    editor.replace(neg, value)
    assert names(model) == [("Relu", ["x"], "a"), ("Abs", ["a"], "y")]


def test_one_value_for_two_outputs_is_copied():
    model, relu, neg = graph(outputs=("a", "y"))
    Editor(model).replace(neg, relu.outputs[0])
    assert names(model) == [("Relu", ["x"], "a"), ("Identity", ["a"], "y")]
    assert [each.name for each in model.graph.outputs] == ["a", "y"]


@pytest.mark.parametrize(("renamed", "name"), [(False, "abs"), (True, "a")])
def test_an_inner_value_is_named_as_asked(renamed, name):
    model, relu, _ = graph()
    editor = Editor(model)
    editor.replace(relu, editor.add(relu, "Abs", list(relu.inputs), "abs", like=relu.outputs[0]), renamed=renamed)
    assert names(model) == [("Abs", ["x"], name), ("Neg", [name], "y")]


def test_rules_meet_every_node_once_but_those_that_are_gone():
    model, _, neg = graph()
    met = []

    def first(editor, node):
        met.append(node.op_type)
        editor.supersede(neg.outputs[0], node.outputs[0])
        editor.graph.remove(neg, safe=True)

    Editor(model).rewrite({"Relu": first, "Neg": lambda editor, node: met.append(node.op_type)})
    assert met == ["Relu"]


def test_an_addition_and_what_it_adds():
    model, relu, neg = graph()
    editor = Editor(model)
    bias = editor.constant("bias", torch.ones(3), "FLOAT")
    assert editor.addition(relu.outputs[0]) is None
    editor.replace(neg, editor.add(neg, "Add", [bias, relu.outputs[0]], "sum", like=neg.outputs[0]))
    node, added = editor.addition(relu.outputs[0]) or (None, None)
    assert (node.op_type, added) == ("Add", bias)
    assert editor.operand(node, 1) is relu.outputs[0]
    assert editor.operand(node, 2) is None


def test_sweeping_drops_what_nothing_uses():
    model, relu, _ = graph()
    editor = Editor(model)
    editor.add(relu, "Abs", list(relu.inputs), "unused", like=relu.outputs[0])
    relu.metadata_props["note"] = "long"
    editor.sweep()
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]
    assert not model.graph.initializers
    assert not relu.metadata_props
