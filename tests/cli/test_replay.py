from __future__ import annotations

from pathlib import Path

import pytest

from parrot_mq.cli import main
from parrot_mq.scheduler.decision_log import DecisionLog, LoggedCore
from parrot_mq.settings import SchedulerSettings


def test_a_log_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    core = LoggedCore(SchedulerSettings(), 1, DecisionLog(path, 10**9))
    core.decide(0.0)
    assert main(["replay", str(path)]) == 0
    assert "placements come out the same" in capsys.readouterr().out
