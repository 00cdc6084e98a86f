"""Split a network in two above a layer group, so that the frozen lower part is computed once. Imports torch.

torch.fx traces the order of the groups only; the contents of a group stay in its own module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd as Dropout

from xferbench.lab.data import batch
from xferbench.lab.models.backbones import is_within, layer_depth
from xferbench.lab.models.batchnorm import preserve_modes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from xferbench.lab.models.backbones import LayerLayout


def split_at(model: nn.Module, layout: LayerLayout, below: int) -> tuple[nn.Module, nn.Module] | None:
    """Split a network above its ``below`` lowest groups.

    The two modules share the tensors of the network, under their own names. ``upper(lower(x))`` equals ``model(x)`` in training
    and in evaluation mode. The lower module includes the operations after its groups that have neither parameters nor
    randomness, such as the pooling below a head, but no dropout.

    Returns:
        The lower and the upper module. None if more than one value crosses the cut, or torch.fx cannot trace the network, or
        the trace depends on the mode.
    """
    if below < 1:
        return None
    depth, max_depth = layer_depth(layout, model), len(layout.groups) - below
    graph = _trace_groups(model, depth)
    if graph is None and max_depth == 0:  # a cut below the head needs no separate groups, so the module of all may be a leaf
        depth = {name: min(value, 1) for name, value in depth.items()}
        graph = _trace_groups(model, depth)
    if graph is None:
        return None
    nodes = list(graph.nodes)
    upper = _upper_nodes(model, nodes, depth, max_depth)
    crossing = {value for node in upper for value in node.all_input_nodes if value not in upper}
    graph_inputs = [node for node in nodes if node.op == "placeholder"]
    if len(crossing) != 1 or len(graph_inputs) != 1 or crossing == set(graph_inputs):
        return None
    (cut,) = crossing
    return (
        _extract_module(model, [node for node in nodes if node not in upper], graph_inputs[0], cut),
        _extract_module(model, [node for node in nodes if node in upper], cut, nodes[-1].args[0]),
    )


def _upper_nodes(model: nn.Module, nodes: Sequence[fx.Node], depth: Mapping[str, int], max_depth: int) -> Collection[fx.Node]:
    """Return the nodes above the cut: those of groups at most ``max_depth`` below the head, and all that depends on them."""
    node_depths = {node: _node_depths(node, depth) for node in nodes}
    feeding_lower: set[fx.Node] = set()
    for node in reversed(nodes):
        if any(value > max_depth for value in node_depths[node]) or feeding_lower.intersection(node.users):
            feeding_lower.add(node)
    upper: set[fx.Node] = set()
    for node in nodes:
        may_vary = (
            node not in feeding_lower and node.op == "call_module" and not _is_deterministic(model.get_submodule(node.target))
        )
        is_above = may_vary or node.op == "output" or any(value <= max_depth for value in node_depths[node])
        if is_above or upper.intersection(node.all_input_nodes):
            upper.add(node)
    return upper


class _GroupTracer(fx.Tracer):
    """A tracer that enters only modules with tensors of several groups, so that each group stays in its own module."""

    def __init__(self, depth: Mapping[str, int]) -> None:
        super().__init__()
        self.depth = depth

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - the signature of torch.fx
        """Return whether a module has tensors of at most one group."""
        return len({value for name, value in self.depth.items() if is_within(name, [module_qualified_name])}) <= 1


def _trace_groups(model: nn.Module, depth: Mapping[str, int]) -> fx.Graph | None:
    """Trace the graph of the groups. Return None if there is no graph that is valid in both modes."""
    graphs = []
    with preserve_modes(model):
        for is_training in (True, False):
            model.train(is_training)
            try:
                graphs.append(_GroupTracer(depth).trace(model))
            except (fx.proxy.TraceError, RuntimeError, TypeError, ValueError):
                return None
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


def _node_depths(node: fx.Node, depth: Mapping[str, int]) -> set[int]:
    """Return the depths of the tensors that a node uses."""
    if node.op not in {"call_module", "get_attr"}:
        return set()
    return {value for name, value in depth.items() if is_within(name, [str(node.target)])}


def _is_deterministic(module: nn.Module) -> bool:
    """Return whether a module without tensors surely computes the same in both modes: a module of torch other than dropout."""
    return all(type(part).__module__.startswith("torch.nn.") and not isinstance(part, Dropout) for part in module.modules())


def _extract_module(model: nn.Module, nodes: Sequence[fx.Node], graph_input: fx.Node, graph_output: fx.Node) -> fx.GraphModule:
    """Return some nodes of a graph as a module that maps the value of one node to that of another."""
    graph = fx.Graph()
    # An in-place layer must not change the cached activations of the caller.
    copies = {graph_input: graph.call_function(batch.copy_batch, (graph.placeholder("x"),))}
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[graph_output])
    return fx.GraphModule(model, graph)
