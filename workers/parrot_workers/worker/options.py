"""The command line of an engine worker."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel
from parrot_mq.model_name import is_folder, model_name

DEMO = "demo"
"""Alias of the model that comes with the package."""
DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"
_NAME = re.compile(r"[\w.:@+-][\w.:@+/-]{0,127}")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. None: the engine's default.

    ``model`` is a folder or a model id, ``name`` what requests call it.
    """

    kind: str
    model: str
    name: str
    redis_url: str | None
    device: str | None
    dtype: str
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_model_len: int | None
    kv_dtype: str
    memory_share: float | None
    kv_memory_gib: float | None
    host_kv_memory_gib: float | None
    num_threads: int | None
    tensor_parallel_size: int | None
    calibrate: bool
    speculate: bool
    prefix_caching: bool
    profile: str | None
    step_log: str | None
    drain_timeout_s: float | None
    instant: bool
    mean_output_tokens: int
    cost: CostModel
    verbose: bool


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options in ``arguments``. Raises ``ConfigError`` for a model or a value that cannot be; ends the
    process with status 2 for options that do not exist, and with 0 after --help (as argparse does).
    """
    given = _parser().parse_args(arguments)
    model = given.model or (DEMO if given.kind == "torch" else "sim")
    folder = str(DEMO_FOLDER) if model == DEMO else model
    if given.kind == "torch":
        _check_folder(model, folder)
    name = given.name or model_name(model)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a model's name; give letters, digits and any of _.:@+/- with --name")
    values = vars(given) | {"model": folder, "name": name, "cost": _cost(given.cost)}
    return Options(**values)


def _check_folder(model: str, folder: str) -> None:
    """Find out what can be found out without torch: whether a model folder is one."""
    path = Path(folder).expanduser()
    if not is_folder(folder):
        return
    if not path.is_dir():
        raise ConfigError(f"--model {model}: there is no folder {path}; give a model's folder, a model id, or {DEMO!r}")
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {model}: {path} holds no config.json, so it is no model in transformers' format")


def _cost(text: str) -> CostModel:
    if not text:
        return CostModel()
    try:
        return CostModel(**{name: float(value) for name, value in orjson.loads(text).items()})
    except (ValueError, TypeError, AttributeError):
        names = ", ".join(field.name for field in dataclasses.fields(CostModel))
        raise ConfigError(
            f"--cost {text!r} is no JSON object of milliseconds by name, none negative; the names are {names}"
        ) from None


def positive(kind: type) -> Callable[[str], float]:
    """Return a parser of an option's value: a finite number of ``kind`` above zero."""

    def parse(text: str) -> float:
        value: float = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    parse.__name__ = kind.__name__
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parrot-mq engine",
        description="Run an engine: it registers in Redis, takes requests for its model and answers them. "
        "`python -m parrot_workers` is the same.",
        epilog="SIGTERM or Ctrl-C drains it, a second one gives back at once what it still runs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kind", "--engine", choices=("torch", "sim"), default="torch", help="sim needs no model and no torch")
    add("--model", default="", help=f"folder or model id; {DEMO!r} (the default) is the model that comes along")
    add("--name", default="", help="what requests call the model; default: the last part of --model")
    add("--redis-url", help="default: PARROT_MQ_REDIS_URL, else the Redis that `parrot-mq up` started in this folder")
    add("--device", help="cpu or cuda:N; default: a GPU if there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--max-num-seqs", type=positive(int), metavar="N", help="sequences that run at once")
    add("--max-num-batched-tokens", type=positive(int), metavar="N", help="tokens that one step computes")
    add("--max-model-len", type=positive(int), metavar="N", help="tokens of prompt and output together")
    add("--kv-dtype", choices=("auto", "fp8"), default="auto", help="of the KV cache; fp8 takes half of the memory")
    add("--memory-share", type=positive(float), metavar="X", help="part of the free memory for KV cache and steps")
    add("--kv-memory-gib", type=positive(float), metavar="X", help="memory for the KV cache")
    add("--host-kv-memory-gib", type=positive(float), metavar="X", help="host memory for what the KV cache gives away")
    add("--num-threads", type=positive(int), metavar="N", help="CPU threads of the model; default: every core but one")
    add("--tensor-parallel-size", type=positive(int), metavar="N", help="processes that compute one model together")
    add("--no-calibrate", dest="calibrate", action="store_false", help="start faster, with a guessed cost model")
    add("--no-speculate", dest="speculate", action="store_false", help="no drafts copied from the text (same outputs)")
    add(
        "--no-prefix-caching",
        dest="prefix_caching",
        action="store_false",
        help="compute every prompt whole, as a baseline does",
    )
    add("--profile", metavar="FOLDER", help="write a trace of some steps by torch's profiler, to open in Perfetto")
    add("--step-log", metavar="FILE", help="append a line of JSON with sizes and times of each step")
    add("--drain-timeout-s", type=float, metavar="S", help="how long requests may go on after SIGTERM")
    add("--verbose", action="store_true", help="log more, and show the traceback of an error")
    sim = parser.add_argument_group("simulated engines")
    sim.add_argument("--instant", action="store_true", help="spend no time")
    sim.add_argument("--mean-output-tokens", type=int, default=0, metavar="N", help="default: always max_tokens")
    sim.add_argument(
        "--cost", default="", metavar="JSON", help="what work costs: '{\"decode_base_ms\": 5}', in milliseconds"
    )
    return parser
