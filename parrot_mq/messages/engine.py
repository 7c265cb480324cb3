"""What an engine says about itself: registration and heartbeat."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from parrot_mq.messages.cost import CostModel


class EngineState(enum.StrEnum):
    """Life of an engine incarnation. Only ``ready`` engines are given work."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclasses.dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine's heartbeat.

    ``id`` is per incarnation. ``model`` is the name requests ask for. ``max_num_seqs`` sequences run at once in
    ``num_blocks`` KV blocks of ``block_size`` tokens. ``resident`` are prefix digests the engine still holds, newest
    first, at most a few hundred.
    """

    id: str
    kind: str
    model: str
    state: EngineState = EngineState.STARTING
    max_num_seqs: int = 32
    max_model_len: int = 2048
    block_size: int = 16
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_running: int = 0
    num_waiting: int = 0
    cost: CostModel = dataclasses.field(default_factory=CostModel)
    resident: tuple[str, ...] = ()
    tokens_per_s: float = 0.0
    host: str = ""
    pid: int = 0
    started_ms: int = 0

    def to_fields(self) -> dict[str, str]:
        """Return the record as fields of a Redis hash, plain text."""
        fields = {
            f.name: str(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in ("cost", "resident")
        }
        fields["state"] = self.state.value
        fields["cost"] = self.cost.to_json()
        fields["resident"] = " ".join(self.resident)
        return fields

    @classmethod
    def from_fields(cls, fields: dict[str, str]) -> EngineRecord:
        """Parse what ``to_fields`` wrote."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = fields.get(field.name)
            if text is None:
                continue
            if field.name == "cost":
                values["cost"] = CostModel.from_json(text)
            elif field.name == "resident":
                values["resident"] = tuple(text.split())
            elif field.name == "state":
                values["state"] = EngineState(text)
            else:
                values[field.name] = _PARSERS.get(str(field.type), str)(text)
        return cls(**values)


_PARSERS: dict[str, type] = {"int": int, "float": float, "str": str}
