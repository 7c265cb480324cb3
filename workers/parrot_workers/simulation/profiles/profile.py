"""A profile, and the JSON files that profiles are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel

FOLDER = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A model on a machine, as numbers: what an engine of it costs and holds.

    ``cost`` in milliseconds; ``num_blocks`` KV blocks of ``block_size`` tokens; at most ``max_num_seqs`` sequences run
    at once, each of at most ``max_model_len`` tokens. ``sources`` has a sentence for each parameter, those of ``cost``
    by their own names: measured, published, or derived, and from what.
    """

    name: str
    description: str
    cost: CostModel
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    sources: Mapping[str, str]

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit the memory."""
        return self.num_blocks * self.block_size


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_profile(name: str) -> Profile:
    """Return the profile called ``name``, or the one in a file of that path if it ends in ``.json``.

    Raises ConfigError for a name that does not exist, a file that is no profile, and a parameter without a source.
    """
    path = Path(name).expanduser() if name.endswith(".json") else FOLDER / f"{name}.json"
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        names = ", ".join(profile_names())
        raise ConfigError(
            f"there is no profile {name!r} ({error.strerror}); give a .json file or one of {names}"
        ) from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the profile {name!r} is no JSON: {error}") from None
    return _parsed(name, found)


def _parsed(name: str, found: Any) -> Profile:
    try:
        values = {"name": Path(name).stem} | found
        values["cost"] = CostModel(**{key: float(value) for key, value in found["cost"].items()})
        profile = Profile(**values)
        parameters = set(found["cost"]) | {"num_blocks", "block_size", "max_num_seqs", "max_model_len"}
        if missing := sorted(parameters - set(profile.sources)):
            raise ConfigError(f"the profile {name!r} does not say where these come from: {', '.join(missing)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the profile {name!r} is not made as one: {error!r}") from None
    return profile
