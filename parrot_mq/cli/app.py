"""The commands of ``parrot-mq``, and how errors end it."""

from __future__ import annotations

import importlib.metadata
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from parrot_mq.cli import demo, doctor, replay, services, show, up
from parrot_mq.cli.console import err, out
from parrot_mq.errors import ParrotError

INTERRUPTED = 130

app = typer.Typer(
    name="parrot-mq",
    help="Serve LLM applications from a message queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command("scheduler", context_settings=_PASSED_ON)(services.scheduler)
app.command("engine", context_settings=_PASSED_ON)(services.engine)
app.command("bench-engine", context_settings=_PASSED_ON)(services.bench_engine)
app.command("simulate", context_settings=_PASSED_ON)(services.simulate)
app.command("replay")(replay.replay)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(show.app, name="show")


def _print_version(wanted: bool) -> None:
    if wanted:
        out().print(f"parrot-mq {importlib.metadata.version('parrot-mq')}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve LLM applications from a message queue."""


def run(arguments: list[str]) -> int:
    """Run the command; return its exit status. An error is one readable line; ``--verbose`` adds the traceback."""
    verbose = "--verbose" in arguments
    if arguments[:1] not in ([name] for name in services.NAMES):  # those have such an option themselves
        arguments = [argument for argument in arguments if argument != "--verbose"]
    try:
        app(arguments, prog_name="parrot-mq")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except ParrotError as error:
        return _failed(str(error), verbose)
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is, the user gets a line, not a dump
        return _failed(f"unexpected {type(error).__name__}: {error} (--verbose shows where)", verbose)
    return 0


def _failed(message: str, verbose: bool) -> int:
    console = err()
    if verbose:
        console.print(traceback.format_exc(), markup=False)
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    return 1
