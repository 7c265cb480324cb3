"""Images of objects as plain JSON: values as they are told, and whole graphs of objects that refer to one another.

Only what is made of plain data can be put into an image: built-in containers, enums, counters, bound methods, and
objects of this project that have nothing but such attributes. An object whose class says ``image_as`` is put down as
one of that class, without the attributes in ``image_without``. Classes are named by their place in ``parrot_mq``;
anything else is refused, in both directions.
"""

from __future__ import annotations

import collections
import enum
import functools
import importlib
import itertools
import types
from collections.abc import Callable
from typing import Any

PACKAGE = "parrot_mq."

Image = Any
"""What orjson writes and reads: None, bool, int, float, str, lists of such, and objects with them."""

_PLAIN = frozenset({type(None), bool, int, str})
_CONTAINERS: dict[str, type] = {
    "list": list,
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "set": set,
    "frozenset": frozenset,
}


class Unfit(TypeError):
    """Something that an image cannot hold."""


def name_of(cls: type) -> str:
    """Return the name of a class of this project. Raises ``Unfit`` for others."""
    if not cls.__module__.startswith(PACKAGE) or "<" in cls.__qualname__:
        raise Unfit(f"{cls.__module__}.{cls.__qualname__} is no class of this project")
    return f"{cls.__module__.removeprefix(PACKAGE)}:{cls.__qualname__}"


def class_of(name: str) -> Any:
    """Return the class that ``name_of`` named. Raises ``Unfit`` for any other name."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(PACKAGE + module)
    for part in path.split("."):
        found = getattr(found, part)
    if not isinstance(found, type) or name_of(found) != name:
        raise Unfit(f"{name} is no class of this project")
    return found


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the slots that objects of a class have, as they are stored."""
    found: list[str] = []
    for cls in kind.__mro__:
        for name in getattr(cls, "__slots__", ()):
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{cls.__name__.lstrip('_')}{name}" if is_private else name)
    return tuple(name for name in dict.fromkeys(found) if name != "__weakref__")


def _attributes(value: object) -> dict[str, Any]:
    """Return what an object holds, in its ``__dict__`` and its slots."""
    kind: Any = type(value)
    without = getattr(value, "image_without", ())
    found = {name: item for name, item in getattr(value, "__dict__", {}).items() if name not in without}
    for name in _slots(kind):
        item = getattr(value, name, _ABSENT)
        if item is not _ABSENT:
            found[name] = item
    return found


_ABSENT = object()


def scalar(value: Any) -> Image:
    """Return the image of a value without parts: None, a number, a text, bytes, or an enum's member; ``Unfit`` else."""
    if isinstance(value, enum.Enum):
        return {"enum": name_of(type(value)), "is": value.value}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else {"float": repr(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise Unfit(f"{type(value).__name__} is not a plain value")


def from_scalar(image: Image) -> Any:
    """Return the value of ``scalar``'s image."""
    if not isinstance(image, dict):
        return image
    if "enum" in image:
        return class_of(image["enum"])(image["is"])
    return float(image["float"]) if "float" in image else bytes.fromhex(image["bytes"])


class Whole:
    """The image of an object with all that it refers to, in which each object stands once."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._found: list[Any] = []

    @classmethod
    def of(cls, root: object) -> Image:
        """Return the image of ``root``. Raises ``Unfit``. Takes some 20 us for an object with ten attributes."""
        whole = cls()
        first = whole._part(root)
        parts = [whole._one(value) for value in whole._walk()]
        return {"root": first, "parts": parts}

    def _walk(self) -> Any:
        place = 0
        while place < len(self._found):  # which grows meanwhile
            yield self._found[place]
            place += 1

    def _part(self, value: Any) -> Image:
        """Return a value's image where it stands in another: scalars and tuples as they are, all else by its place."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is tuple:
            return {"tuple": [self._part(item) for item in value]}
        if kind is float or kind is bytes or isinstance(value, (enum.Enum, str, int)):
            return scalar(value)
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = len(self._found)
            self._found.append(value)
        return {"at": place}

    def _one(self, value: Any) -> Image:
        kind: Any = type(value)
        part = self._part
        if kind is collections.deque:
            return {"deque": [part(item) for item in value], "most": value.maxlen}
        if kind in (dict, collections.OrderedDict):
            return {kind.__name__: [[part(key), part(item)] for key, item in value.items()]}
        if kind in (list, set, frozenset):
            return {kind.__name__: [part(item) for item in value]}
        if kind is itertools.count:
            return {"count": int(repr(value)[len("count(") : -1])}
        if kind is types.MethodType:
            return {"method": value.__name__, "of": part(value.__self__)}
        held, named = _attributes(value), getattr(value, "image_as", kind)
        return {"object": _name_of(named), "has": {name: part(item) for name, item in held.items()}}


_name_of = functools.cache(name_of)


def restore(image: Image) -> Any:
    """Return new objects that are as those of ``Whole.of``'s image were."""
    parts: list[dict[str, Any]] = image["parts"]
    made: list[Any] = [_blank(part) for part in parts]

    def value_of(part: Image) -> Any:
        if isinstance(part, dict):
            if "at" in part:
                return made[part["at"]]
            if "tuple" in part:
                return tuple(value_of(item) for item in part["tuple"])
        return from_scalar(part)

    for place, part in enumerate(parts):
        if "method" in part:
            made[place] = getattr(value_of(part["of"]), part["method"])
        elif "frozenset" in part:
            made[place] = frozenset(value_of(item) for item in part["frozenset"])
    for place, part in enumerate(parts):  # objects before containers: those may be hashed by what they hold
        if "object" in part:
            for name, item in part["has"].items():
                object.__setattr__(made[place], name, value_of(item))
    for place, part in enumerate(parts):
        _fill(made[place], part, value_of)
    return value_of(image["root"])


def _blank(part: dict[str, Any]) -> Any:
    if "object" in part:
        cls = class_of(part["object"])
        return object.__new__(cls)
    if "deque" in part:
        return collections.deque(maxlen=part["most"])
    if "count" in part:
        return itertools.count(part["count"])
    for name, kind in _CONTAINERS.items():
        if name in part:
            return kind()
    return None  # a bound method: made when its object is there


def _fill(made: Any, part: dict[str, Any], value_of: Callable[[Image], Any]) -> None:
    for name in ("dict", "OrderedDict"):
        if name in part:
            for key, item in part[name]:
                made[value_of(key)] = value_of(item)
    for name in ("list", "deque"):
        if name in part:
            made.extend(value_of(item) for item in part[name])
    if "set" in part:
        made.update(value_of(item) for item in part["set"])
