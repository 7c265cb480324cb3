"""The store: Redis as parrot_mq's only shared state. Every state change is one Lua script.

Role classes: ``ProducerStore`` (SDK), ``EngineStore`` (workers), ``SchedulerStore``, and ``Reader`` for everybody.
"""

from parrot_mq.store.codec import encode_value
from parrot_mq.store.connect import Store, connect
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.ids import IdSource, SeededIds, SystemIds
from parrot_mq.store.partition import Partition
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.reader import Reader
from parrot_mq.store.scheduler import SchedulerStore
from parrot_mq.store.waiters import Waiters

__all__ = [
    "EngineStore",
    "IdSource",
    "Partition",
    "ProducerStore",
    "Reader",
    "SchedulerStore",
    "SeededIds",
    "Store",
    "SystemIds",
    "Waiters",
    "connect",
    "encode_value",
]
