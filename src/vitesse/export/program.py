"""A model as a torch program in the few plain operators that mobile compilers know.

What they do not know is said in what they know: parts of a tensor are slices, not lists; products of
batches have one batch axis; a mean over a map keeps its axes; views that change nothing are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vitesse.errors import ExportError

if TYPE_CHECKING:
    from torch.fx import Graph, Node

    from vitesse.spec import ModelSpec

aten = torch.ops.aten


def captured(model: nn.Module, spec: ModelSpec) -> torch.export.ExportedProgram:
    """The program of one picture, (1, C, H, W) float32 to logits (1, K).

    Raises:
        ExportError: torch cannot trace the model.
    """
    images_BCHW = torch.zeros(1, spec.in_chans, *spec.image_size)
    try:
        program = torch.export.export(model.eval(), (images_BCHW,))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ExportError(f"{spec.name}: torch cannot trace it: {str(error).splitlines()[0]}") from error
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if (rule := _RULES.get(node.target)) is not None:
            with graph.inserting_before(node):
                rule(graph, node)
    graph.lint()
    program.graph_module.recompile()
    return program


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new node, with the value that it has for the example."""
    node = graph.call_function(target, args)
    examples = torch.fx.node.map_arg(args, lambda argument: argument.meta["val"])
    node.meta["val"] = target(*examples)
    return node


def _replace(graph: Graph, node: Node, other: Node) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def _shape(node: Any) -> list[int]:
    return list(node.meta["val"].shape)


def _drop_no_op(graph: Graph, node: Node) -> None:
    source: Any = node.args[0]
    if _shape(source) == _shape(node):
        _replace(graph, node, source)


def _slice_parts(graph: Graph, node: Node) -> None:
    """A split or chunk becomes one slice for each part that is used."""
    source, _, *rest = node.args
    axis: Any = rest[0] if rest else node.kwargs.get("dim", 0)
    bounds = list(pairwise(accumulate((part.shape[axis] for part in node.meta["val"]), initial=0)))
    for getter in list(node.users):
        first, last = bounds[getter.args[1]]  # type: ignore[index]
        _replace(graph, getter, _call(graph, aten.slice.Tensor, source, axis, first, last))
    graph.erase_node(node)


def _slice_rows(graph: Graph, node: Node) -> None:
    """An unbind becomes one slice, without its axis, for each row that is used."""
    source, *rest = node.args
    axis: Any = rest[0] if rest else 0
    for getter in list(node.users):
        row: Any = getter.args[1]
        part = _call(graph, aten.slice.Tensor, source, axis, row, row + 1)
        _replace(graph, getter, _call(graph, aten.view.default, part, _shape(getter)))
    graph.erase_node(node)


def _spell_out_attention(graph: Graph, node: Node) -> None:
    """Fused attention as its products and softmax; without mask, as every model here has it."""
    query, key, value, *rest = node.args
    if rest or set(node.kwargs) - {"scale"}:
        return
    scale = node.kwargs.get("scale") or _shape(query)[-1] ** -0.5
    keys_first = _call(graph, aten.transpose.int, key, -2, -1)
    logits = _call(graph, aten.matmul.default, _call(graph, aten.mul.Tensor, query, scale), keys_first)
    weights = _call(graph, aten.softmax.int, logits, -1)
    products = [logits, _call(graph, aten.matmul.default, weights, value)]
    _replace(graph, node, products[-1])
    for product in products:
        with graph.inserting_before(product):
            _one_batch_axis(graph, product)


def _one_batch_axis(graph: Graph, node: Node) -> None:
    """A product of equal batches is one of matrices."""
    left, right = node.args
    *batch, rows, inner = _shape(left)
    *same, _, columns = _shape(right)
    if batch != same or not batch:
        return
    flat = [
        _call(graph, aten.reshape.default, side, [math.prod(batch), *shape])
        for side, shape in ((left, (rows, inner)), (right, (inner, columns)))
    ]
    product = _call(graph, aten.bmm.default, *flat)
    _replace(graph, node, _call(graph, aten.reshape.default, product, _shape(node)))


def _keep_axes(graph: Graph, node: Node) -> None:
    """The mean over a map, then a view without the map."""
    source, axes, *rest = node.args
    if sorted(axis % 4 for axis in cast("list[int]", axes)) != [2, 3] or (rest and rest[0]):
        return
    mean = _call(graph, aten.mean.dim, source, axes, True)
    _replace(graph, node, _call(graph, aten.view.default, mean, _shape(node)))


_RULES: dict[Any, Callable[[Graph, Node], None]] = {
    aten.alias.default: _drop_no_op,
    aten.expand.default: _drop_no_op,
    aten.split.Tensor: _slice_parts,
    aten.split_with_sizes.default: _slice_parts,
    aten.chunk.default: _slice_parts,
    aten.unbind.int: _slice_rows,
    aten.matmul.default: _one_batch_axis,
    aten.scaled_dot_product_attention.default: _spell_out_attention,
    aten.mean.dim: _keep_axes,
}


def operators(program: torch.export.ExportedProgram) -> Sequence[str]:
    """The names of its operators, in order."""
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
