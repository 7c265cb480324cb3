"""``python -m parrot_workers.bench``, which is ``parrot-mq bench-engine``: measure an engine, print a table or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from parrot_mq.entry import explain
from parrot_mq.errors import ConfigError
from parrot_workers.bench.measure import Figures, Work, measure
from parrot_workers.worker.factory import engine_factory
from parrot_workers.worker.options import parse_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status: 0, or that of ``explain``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        given, rest = _parser().parse_known_args(arguments)
        result = bench(given, rest)
        print(orjson.dumps(result).decode() if given.json else table(result))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: an error becomes a line and a status
        return explain(error, "--verbose" in arguments)
    return 0


def bench(given: argparse.Namespace, engine_arguments: Sequence[str]) -> dict[str, Any]:
    """Return sizes, times and memory of an engine, and a row of figures for each batch; progress on standard error.

    Raises ConfigError where prompts and outputs do not fit the model, or the engine's options are wrong.
    """
    # Random prompts tell nothing about drafts copied from the text.
    options = dataclasses.replace(parse_options(engine_arguments), speculate=False, calibrate=False)
    if options.kind != "torch":
        raise ConfigError("only engines of kind torch are measured: a simulated one takes the time that it is told to")
    if not 0 <= given.shared_tokens < given.prompt_tokens:
        raise ConfigError(
            f"--shared-tokens {given.shared_tokens} must be fewer than --prompt-tokens {given.prompt_tokens}"
        )
    start_s = time.perf_counter()
    engine: Any = engine_factory(options)()
    load_s, loaded_bytes = time.perf_counter() - start_s, resident_bytes("VmRSS")
    spec = engine.spec
    if given.prompt_tokens + given.output_tokens > spec.max_model_len:
        raise ConfigError(
            f"{given.prompt_tokens} prompt and {given.output_tokens} output tokens are more than the "
            f"{spec.max_model_len} that {spec.model} takes: lower --prompt-tokens or --output-tokens"
        )
    plain_ids = tuple(i for i in range(engine.tokenizer.size) if engine.tokenizer.is_plain([i]))
    work = Work(given.prompt_tokens, given.shared_tokens, given.output_tokens, plain_ids)
    rows = []
    for figures in measure(engine, work, given.batches, given.rounds):
        print(f"batch {figures.batch}, {figures.shared_tokens} tokens shared: done", file=sys.stderr, flush=True)
        rows.append(figures)
    engine.close()
    return {
        "model": spec.model,
        "dtype": options.dtype,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "rounds": given.rounds,
        "max_num_seqs": spec.max_num_seqs,
        "kv_cache_tokens": spec.num_blocks * spec.block_size,
        "load_s": round(load_s, 2),
        "resident_bytes_loaded": loaded_bytes,
        "resident_bytes_peak": resident_bytes("VmHWM"),
        "rows": [dataclasses.asdict(figures) for figures in rows],
    }


def table(result: dict[str, Any]) -> str:
    """Return the result for people."""
    mib = 1 << 20
    lines = [
        f"{result['model']}: prompts of {result['prompt_tokens']} tokens, {result['output_tokens']} of output, greedy; "
        f"medians of {result['rounds']} rounds",
        f"loaded in {result['load_s']} s; memory {result['resident_bytes_loaded'] // mib} MiB once loaded, "
        f"{result['resident_bytes_peak'] // mib} at most; KV cache for {result['kv_cache_tokens']:,} tokens",
        "",
        f"{'batch':>5} {'shared':>7} {'TTFT p50 ms':>12} {'prefill tokens/s':>17} {'decode tokens/s':>16} "
        f"{'output tokens/s':>16}",
    ]
    lines += [
        f"{row.batch:>5} {row.shared_tokens:>7} {row.ttft_p50_ms:>12.1f} {row.prefill_tokens_per_s:>17,.0f} "
        f"{row.decode_tokens_per_s:>16,.0f} {row.output_tokens_per_s:>16,.0f}"
        for row in (Figures(**row) for row in result["rows"])
    ]
    lines += ["", "prefill counts the prompts' tokens, shared ones too; output is decode and prefill together"]
    return "\n".join(lines)


def resident_bytes(field: str) -> int:
    """Return this process's memory from the kernel: ``VmRSS`` now, ``VmHWM`` at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parrot-mq bench-engine",
        description="Measure an engine on this machine: prefill, decode and time to first token, with and without a "
        "shared prefix. It needs no Redis.",
        epilog="Options of `parrot-mq engine` say which engine: --model (default: the demo's), --dtype, --num-threads, "
        "--max-num-seqs, --kv-memory-gib and so on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--batches", type=_positive, nargs="+", default=[1, 8, 32], metavar="N", help="prompts at once (1 8 32)")
    add("--prompt-tokens", type=_positive, default=256, metavar="N", help="length of a prompt (256)")
    add("--shared-tokens", type=int, default=192, metavar="N", help="the part that all begin with; 0: only without")
    add("--output-tokens", type=_at_least_two, default=64, metavar="N", help="length of an output (64)")
    add("--rounds", type=_positive, default=3, metavar="N", help="medians over so many, after one not counted (3)")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _positive(text: str) -> int:
    return _at_least(1, text)


def _at_least_two(text: str) -> int:
    """The first token is prefill's, so decoding is measured from the second on."""
    return _at_least(2, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is no number of at least {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
