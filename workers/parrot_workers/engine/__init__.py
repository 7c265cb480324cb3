"""Engines behind one port: a model with continuous batching over a paged, content-addressed KV cache.

``port`` is what the rest of the project sees; ``torch_engine`` is the engine that runs models itself. Nothing in this
package knows Redis or asyncio.
"""
