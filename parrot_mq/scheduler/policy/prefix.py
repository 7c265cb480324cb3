"""Prefix digests: which prompts begin alike, and which engine has that beginning in its cache.

One digest per boundary of the prompt (the reference's PrefixHash): after each constant and each value, chained, so that
equal digests mean equal text cut into equal segments, which is what makes token ids equal. They are keyed per tenant,
so that nobody learns from a digest whether another tenant uses the same text. Digests are hints for grouping; block
hashes over final token ids decide what an engine really reuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from parrot_mq.messages import Segment, SegmentKind
from parrot_mq.scheduler.nodes import RequestNode

DIGEST_BYTES = 8
MAX_BOUNDARIES = 16
"""Boundaries kept of one prompt: the first ones and the last. An assignment carries them, so it stays small."""
BYTES_PER_TOKEN = 4
"""Until engines report token counts: UTF-8 bytes of English text per token of a usual vocabulary."""

Boundary = tuple[str, int]
"""A digest, and the estimated number of tokens before it."""


def tokens_of(size_bytes: int) -> int:
    """Estimate the tokens in ``size_bytes`` of text."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def text_digest(data: bytes) -> str:
    """Return the digest of a text: the one that the store gives to a variable's value."""
    return hashlib.sha256(data).hexdigest()[:32]


@dataclasses.dataclass(frozen=True, slots=True)
class TemplateSegment:
    """A segment of a template with what digests need: the text's digest and size, or the placeholder's name."""

    name: str
    digest: str
    num_tokens: int

    @property
    def is_constant(self) -> bool:
        """Whether it is text of the template itself."""
        return not self.name


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A tenant's function as prefix digests see it."""

    key: bytes
    """Keys the digests: derived from the tenant."""
    segments: tuple[TemplateSegment, ...]

    @classmethod
    def compile(cls, tenant: str, segments: Sequence[Segment]) -> Template:
        """Digest the constants of ``segments`` once."""
        compiled = []
        for segment in segments:
            if segment.kind is SegmentKind.CONSTANT:
                data = segment.text.encode()
                compiled.append(TemplateSegment("", text_digest(data), tokens_of(len(data))))
            else:
                compiled.append(TemplateSegment(segment.text, "", 0))
        return cls(hashlib.sha256(b"parrot_mq prefix " + tenant.encode()).digest(), tuple(compiled))


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A boundary on the way through a prompt: its first ``end`` segments have this digest and about so many tokens."""

    end: int
    digest: str
    num_tokens: int


START = Step(0, "", 0)


def walk(template: Template, node: RequestNode, after: Step = START) -> Iterator[Step]:
    """Go through the boundaries of a request's prompt, behind ``after``, up to the first input that is not resolved.

    Raw texts (of earlier outputs of the same call) are digested apart from transformed ones, which may differ.
    """
    inputs = {variable.id: variable for variable in node.inputs}
    chain, num_tokens = bytes.fromhex(after.digest), after.num_tokens
    for index in range(after.end, min(node.prompt_end, len(template.segments))):
        segment = template.segments[index]
        if segment.is_constant:
            tag, digest, tokens = b"c", segment.digest, segment.num_tokens
        else:
            binding = node.bindings[segment.name]
            if (text := binding.get("text")) is not None:
                data = text.encode()
                tag, digest, tokens = b"v", text_digest(data), tokens_of(len(data))
            else:
                variable = inputs.get(binding["variable"])
                if variable is None or not variable.resolved:
                    return
                tag = b"r" if variable.id in node.raw_inputs else b"v"
                digest, tokens = variable.digest, tokens_of(variable.size_bytes)
        chain = hashlib.blake2b(chain + tag + digest.encode(), digest_size=DIGEST_BYTES, key=template.key).digest()
        num_tokens += tokens
        yield Step(index + 1, chain.hex(), num_tokens)


def boundaries(template: Template, node: RequestNode) -> list[Boundary]:
    """Return the boundaries of a request's prompt, up to the first input that is not resolved.

    The last one covers the whole prompt if all its inputs are resolved.
    """
    found = [(step.digest, step.num_tokens) for step in walk(template, node)]
    return found if len(found) <= MAX_BOUNDARIES else [*found[: MAX_BOUNDARIES - 1], found[-1]]


def prompt_tokens(template: Template | None, node: RequestNode) -> int:
    """Estimate the length of a request's prompt; without the template its constants are not counted."""
    num_bytes = sum(variable.size_bytes for variable in node.inputs)
    num_bytes += sum(len(text.encode()) for binding in node.bindings.values() if (text := binding.get("text")))
    num_tokens = tokens_of(num_bytes)
    if template is not None:
        num_tokens += sum(segment.num_tokens for segment in template.segments[: node.prompt_end])
    return num_tokens
