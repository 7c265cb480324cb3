"""The live graph: unfinished requests and the variables between them. No I/O; memory is freed as requests finish."""

from __future__ import annotations

from typing import Any

from parrot_mq.keys import partition_of
from parrot_mq.messages import RequestState
from parrot_mq.scheduler.nodes import Arrival, RequestNode, VariableNode, new_request


class Graph:
    """Requests by id and variables by id, of all partitions (ids carry theirs).

    A variable that was imported into other partitions is one node here: its producer stands in its home partition,
    consumers may stand in any, so that objectives cross partitions. Which requests are ready is never derived from the
    graph: the store's scripts decide that, and hint it.
    """

    def __init__(self) -> None:
        self.requests: dict[str, RequestNode] = {}
        self.variables: dict[str, VariableNode] = {}

    def variable(self, variable_id: str) -> VariableNode:
        """Return the node of a variable, made if there is none."""
        node = self.variables.get(variable_id)
        if node is None:
            node = self.variables[variable_id] = VariableNode(variable_id)
        return node

    def add(self, spec: dict[str, Any], arrival: Arrival, rev: int, state: RequestState) -> RequestNode | None:
        """Insert the request of ``spec`` (a spec's JSON object); None if it is known already."""
        request_id: str = spec["id"]
        if request_id in self.requests:
            return None
        output_id: str = spec["output"]
        inputs: dict[str, VariableNode] = {}
        depth = 0
        for binding in spec["bindings"].values():
            variable_id = binding.get("variable")
            if not variable_id or variable_id == output_id or variable_id in inputs:
                continue
            variable = inputs[variable_id] = self.variable(variable_id)
            if variable.producer is not None and variable.producer.depth >= depth:
                depth = variable.producer.depth + 1
        output = self.variable(output_id)
        node = new_request(
            spec, arrival, partition_of(request_id), rev, state, output, tuple(inputs.values()), depth
        )  # fmt: skip
        self.requests[request_id] = node
        output.producer = node
        for variable in node.inputs:
            variable.consumers[request_id] = node
        return node

    def resolve(self, variable_id: str, digest: str, size_bytes: int) -> VariableNode | None:
        """Note a variable's value; None if no unfinished request has to do with it."""
        node = self.variables.get(variable_id)
        if node is not None and not node.resolved:
            node.resolved, node.digest, node.size_bytes = True, digest, size_bytes
        return node

    def remove(self, node: RequestNode) -> None:
        """Take a finished request out, with every variable that nothing refers to any more."""
        del self.requests[node.id]
        if node.group is not None:
            node.group.size -= 1
        output = node.output
        if output.producer is node:
            output.producer = None
            self._free(output)
        for variable in node.inputs:
            variable.consumers.pop(node.id, None)
            self._free(variable)

    def _free(self, variable: VariableNode) -> None:
        if variable.producer is None and not variable.consumers:
            self.variables.pop(variable.id, None)
