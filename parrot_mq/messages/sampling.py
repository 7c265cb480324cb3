"""Sampling parameters of one output."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pydantic
from pydantic.dataclasses import dataclass

MAX_TOKENS_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, config=pydantic.ConfigDict(extra="forbid", strict=False))
class SamplingParams:
    """How an output is generated.

    ``temperature`` 0 is greedy (exact arg-max). ``top_k`` 0 and ``top_p`` 1 are off. ``max_tokens`` counts generated
    tokens, the stop token included; with ``ignore_eos`` exactly ``max_tokens`` are generated unless a stop string
    matches. ``stop`` strings and ``stop_token_ids`` end the output and are not part of it; neither ends it before
    ``min_tokens``. ``seed`` makes a sampled output reproducible whatever else is in the batch; without one the service
    draws one. ``presence_penalty`` and ``frequency_penalty`` count generated tokens, ``repetition_penalty`` prompt and
    generated ones (Keskar et al. 2019). ``logit_bias`` maps token ids to additive biases in [-100, 100].
    """

    temperature: Annotated[float, pydantic.Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, pydantic.Field(ge=0)] = 0
    min_p: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, pydantic.Field(ge=1, le=MAX_TOKENS_LIMIT)] = 128
    min_tokens: Annotated[int, pydantic.Field(ge=0, le=MAX_TOKENS_LIMIT)] = 0
    stop: Annotated[tuple[Annotated[str, pydantic.Field(min_length=1)], ...], pydantic.Field(max_length=16)] = ()
    stop_token_ids: tuple[Annotated[int, pydantic.Field(ge=0)], ...] = ()
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] | None = None
    presence_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, pydantic.Field(gt=0, le=10)] = 1.0
    logit_bias: dict[int, Annotated[float, pydantic.Field(ge=-100, le=100)]] = dataclasses.field(default_factory=dict)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})")

    @property
    def greedy(self) -> bool:
        """Whether the arg-max is taken at every token."""
        return self.temperature == 0

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, ready for JSON."""
        data = {}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                data[name] = value
        if "logit_bias" in data:
            data["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SamplingParams:
        """Parse and validate what ``to_dict`` wrote (JSON's string keys and lists are accepted)."""
        return cls(**data)


_DEFAULTS: dict[str, Any] = {
    field.name: getattr(SamplingParams(), field.name) for field in dataclasses.fields(SamplingParams)
}
