"""Values on their way into Redis: size limits, digests, and where they are kept."""

from __future__ import annotations

import hashlib

from parrot_mq.errors import BadType, ValueTooLarge
from parrot_mq.settings import StoreSettings
from parrot_mq.store.records import Value


def encode_value(
    text: str,
    settings: StoreSettings,
    fence: str,
    token_ids: tuple[int, ...] = (),
    tokens_by: str = "",
) -> Value:
    """Return ``text`` ready to be stored; ``fence`` names its key if it is too large for the hash.

    Any Unicode text of 0 bytes to ``max_value_bytes`` of UTF-8 is accepted. Raises ``ValueTooLarge``, and ``BadType``
    for what is no text or holds lone surrogates (which UTF-8 cannot carry).
    """
    if not isinstance(text, str):
        raise BadType(f"a variable's value must be str, not {type(text).__name__}; convert it first")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise BadType(
            f"the value holds a lone surrogate at position {error.start}, which UTF-8 cannot carry; "
            "clean it with text.encode('utf-8', 'replace').decode()"
        ) from None
    if len(data) > settings.max_value_bytes:
        raise ValueTooLarge(
            f"the value has {len(data)} bytes, the limit is {settings.max_value_bytes} (max_value_bytes); "
            "split it or raise the limit",
            len(data),
            settings.max_value_bytes,
        )
    staged = fence if len(data) >= settings.inline_bytes else ""
    digest = hashlib.sha256(data).hexdigest()[:32]
    return Value(text, len(data), digest, staged, token_ids, tokens_by)
