"""``parrot-mq replay``: the decisions of a decision log, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parrot_mq.cli.console import literal, out
from parrot_mq.scheduler.replay import DIFFERENT
from parrot_mq.scheduler.replay import replay as replay_log


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What --decision-log wrote.")
    ],
) -> None:
    """Make the decisions of a decision log again, and show the first that comes out otherwise."""
    replayed = replay_log(file)
    out().print(literal(str(replayed)), soft_wrap=True)
    if replayed.difference is not None:
        raise typer.Exit(DIFFERENT)
