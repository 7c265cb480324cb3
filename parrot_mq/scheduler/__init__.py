"""The scheduler: decides what runs where, and gives back what was lost.

``Scheduler(store, settings).run()`` leads or stands by; ``serve`` does so until SIGTERM. One leader serves all
partitions: one graph (ids carry their partition), one intake loop per partition. ``policy`` decides, without I/O.
"""

from parrot_mq.scheduler.service import Scheduler, serve

__all__ = ["Scheduler", "serve"]
