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
        self._known: OrderedDict[TemplateKey, Template] = OrderedDict()
        self._missed: dict[TemplateKey, dict[str, RequestNode]] = {}

    def get(self, node: RequestNode) -> Template | None:
        """Return the template of a request; None if it is not here (yet)."""
        key = (node.partition, node.tenant, node.function)
        template = self._known.get(key)
        if template is not None:
            self._known.move_to_end(key)
            return template
        missed = self._missed.setdefault(key, {})
        if len(missed) < MAX_MISSED:
            missed[node.id] = node
        return None

    @property
    def has_missing(self) -> bool:
        """Whether anything is to be fetched."""
        return bool(self._missed)

    def missing(self) -> list[TemplateKey]:
        """Return what is to be fetched."""
        return list(self._missed)

    def store(self, key: TemplateKey, record: FunctionRecord | None) -> list[RequestNode]:
        """Keep a fetched template (None: it does not exist); return the requests that missed it."""
        if record is not None:
            self._known[key] = Template.compile(key[1], record.segments)
            if len(self._known) > MAX_TEMPLATES:
                self._known.popitem(last=False)
        return list(self._missed.pop(key, {}).values())
