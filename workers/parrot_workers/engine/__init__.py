"""Engines behind one port: a model with continuous batching over a paged, content-addressed KV cache.

``Engine`` is the one that runs models itself; ``port`` is what the rest of the project sees of any. Nothing in this
package knows Redis or asyncio. Importing it does not import torch: ``Engine`` is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parrot_workers.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from parrot_workers.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
