"""Templates of functions, fetched once each and off the path of the requests that need them."""

from __future__ import annotations

from collections import OrderedDict

from parrot_mq.messages import FunctionRecord
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Template

MAX_TEMPLATES = 4096
MAX_MISSED = 20_000
"""Requests remembered per template that is on its way; others go without prefix digests."""

TemplateKey = tuple[int, str, str]
"""Partition, tenant and digest of a function."""


class Templates:
    """A bounded cache. What is missing is noted with the requests that missed it, for the shell to fetch."""

    def __init__(self) -> None:
        self._known: OrderedDict[TemplateKey, Template | None] = OrderedDict()
        """None for what was looked up and does not exist."""
        self._missed: dict[TemplateKey, dict[str, RequestNode]] = {}

    def get(self, node: RequestNode) -> Template | None:
        """Return the template of a request; None if it is not here (yet)."""
        key = (node.partition, node.tenant, node.function)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        missed = self._missed.setdefault(key, {})
        if len(missed) < MAX_MISSED:
            missed[node.id] = node
        return None

    def submitted(self, node: RequestNode) -> None:
        """A request came: its template is there by now, even if it was not before."""
        key = (node.partition, node.tenant, node.function)
        if key in self._known and self._known[key] is None:
            del self._known[key]
        self.get(node)

    @property
    def has_missing(self) -> bool:
        """Whether anything is to be fetched."""
        return bool(self._missed)

    def missing(self) -> list[TemplateKey]:
        """Return what is to be fetched."""
        return list(self._missed)

    def store(self, key: TemplateKey, record: FunctionRecord | None) -> list[RequestNode]:
        """Keep a fetched template (None: it does not exist); return the requests that missed it."""
        self._known[key] = None if record is None else Template.compile(key[1], record.segments)
        if len(self._known) > MAX_TEMPLATES:
            self._known.popitem(last=False)
        return list(self._missed.pop(key, {}).values())
