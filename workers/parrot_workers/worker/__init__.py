"""The worker shell: everything between Redis and the engine port.

Three threads share a process. The *event loop* owns Redis and the table of runs (``shell``). The *step thread* owns
the engine (``stepper``). The *keeper thread* has an event loop and connections of its own for heartbeats and lease
renewals (``keeper``), so that neither a long model step nor the loading of weights can starve them.
"""

from parrot_workers.worker.shell import EngineWorker

__all__ = ["EngineWorker"]
