"""Show a value of a graph, also one inside the body of a Scan or Loop: there once for every trip, the trips first."""

from __future__ import annotations

import onnx_ir as ir

from optimize.quantize.weights import Inside


def expose(graph: ir.Graph, value: ir.Value, inside: Inside) -> tuple[ir.Value, int] | None:
    """Make a value an output of the graph, edited in place; gives it and the number of its first axes that are trips.

    inside: the bodies in which the value is used. None for a value in a branch, which may not be there.
    """
    name = f"exposed/{value.name}"
    trips = 0
    places = [(parent, parent.attributes[attribute].as_graph()) for parent, attribute in inside]
    while places and value.graph is not places[-1][1]:
        places.pop()  # it comes from further out
    for parent, body in reversed(places):
        if parent.op_type not in ("Scan", "Loop"):
            return None
        body.outputs.append(_copied(body, value, f"{name}/{trips}"))
        for attribute in ("scan_output_axes", "scan_output_directions"):
            if attribute in parent.attributes:
                kept = parent.attributes[attribute].as_ints()
                parent.attributes[attribute] = ir.AttrInt64s(attribute, [*kept, 0])
        parent.resize_outputs(len(parent.outputs) + 1)
        value = parent.outputs[-1]
        trips += 1
        value.name = f"{name}/{trips}/trips"
    output = _copied(graph, value, name)
    graph.outputs.append(output)
    return output, trips


def _copied(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """The same value, produced in ``graph``."""
    node = ir.node("Identity", [value])
    graph.append(node)
    node.outputs[0].name = name
    return node.outputs[0]
