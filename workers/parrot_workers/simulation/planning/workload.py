"""A load, described in a few numbers: which applications come, how often, and how long their texts are."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import pydantic
from pydantic.dataclasses import dataclass

from parrot_mq.errors import ConfigError

FOLDER = Path(__file__).parent / "workloads"
MAX_TOKENS = 1_000_000
MAX_APPLICATIONS = 100_000

Tokens = Annotated[int, pydantic.Field(ge=1, le=MAX_TOKENS)]


def _in_order(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{list(bounds)} is not [least, most]")
    return bounds


Size = Tokens | Annotated[tuple[Tokens, Tokens], pydantic.AfterValidator(_in_order)]
"""A number of tokens; or [least, most], of which one is drawn."""
Count = Annotated[int, pydantic.Field(ge=1, le=1000)]
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class _Application:
    weight: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """How often it comes, beside the others."""
    objective: Literal["latency", "throughput"] = "latency"
    """What its user asks of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Chain(_Application):
    """``steps`` calls, each of which reads a chunk of a document and the answer before it."""

    shape: Literal["chain"]
    steps: Count = 10
    chunk_tokens: Size = 1024
    output_tokens: Size = 50


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class MapReduce(_Application):
    """``maps`` calls at once, each on a chunk of a document, and one that reads their answers."""

    shape: Literal["map-reduce"]
    maps: Annotated[int, pydantic.Field(ge=1, le=200)] = 16
    chunk_tokens: Size = 1024
    output_tokens: Size = 50
    reduce_output_tokens: Size = 100


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Chat(_Application):
    """``turns`` of a conversation under a system prompt that all conversations share.

    Each call reads all that was said before; ``think_s`` seconds lie between an answer and what the user says next.
    """

    shape: Literal["chat"]
    turns: Annotated[int, pydantic.Field(ge=1, le=50)] = 4
    system_tokens: Tokens = 200
    user_tokens: Size = 60
    output_tokens: Size = 150
    think_s: Annotated[float, pydantic.Field(ge=0, le=3600)] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class SharedPrompt(_Application):
    """One call: one of ``num_prompts`` long prompts that many share, and a query of its own."""

    shape: Literal["shared-prompt"]
    shared_tokens: Tokens = 2000
    num_prompts: Count = 1
    query_tokens: Size = 50
    output_tokens: Size = 200


Application = Chain | MapReduce | Chat | SharedPrompt


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Workload:
    """Applications that come at random (Poisson), ``arrivals_per_s`` in all, until there were ``num_applications``."""

    name: str = ""
    arrivals_per_s: Annotated[float, pydantic.Field(gt=0, le=10_000)]
    num_applications: Annotated[int, pydantic.Field(ge=1, le=MAX_APPLICATIONS)] = 100
    applications: Annotated[
        list[Annotated[Application, pydantic.Field(discriminator="shape")]], pydantic.Field(min_length=1, max_length=50)
    ]


_ADAPTER = pydantic.TypeAdapter(Workload)


def workload_names() -> list[str]:
    """Return the names of the workloads that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_workload(name: str) -> Workload:
    """Return the built-in workload of a name, or the one that a file (``.toml`` or ``.json``) describes.

    Raises ConfigError for what does not exist or cannot be one, with the field at fault.
    """
    path = Path(name).expanduser() if name.endswith((".toml", ".json")) else FOLDER / f"{name}.toml"
    try:
        data = path.read_bytes()
    except OSError as error:
        names = ", ".join(workload_names())
        raise ConfigError(
            f"there is no workload {name!r} ({error.strerror}); give a .toml or .json file, or one of {names}"
        ) from None
    try:
        # As JSON all the same: pydantic's strict mode then takes a list for a pair, and nothing else.
        described = orjson.dumps(tomllib.loads(data.decode())) if path.suffix == ".toml" else data
        workload = _ADAPTER.validate_json(described)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"the workload {name!r} cannot be read: {error}") from None
    except pydantic.ValidationError as error:
        raise ConfigError(f"the workload {name!r} is none: {_first(error)}") from None
    return workload if workload.name else dataclasses.replace(workload, name=path.stem)


def _first(error: pydantic.ValidationError) -> str:
    # A size is a number or a pair: what is wrong with the pair says more than that it is no number.
    problems: Any = error.errors()
    problem = next((each for each in problems if each["type"] == "value_error"), problems[0])
    where = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where or 'it'}: {problem['msg']}{more}"
