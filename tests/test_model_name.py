"""What requests call a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from parrot_mq.model_name import model_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("", ""),
        ("demo", "demo"),
        ("org/tiny", "tiny"),
        ("/models/big/", "big"),
        ("./x", "x"),
        ("/models/my tiny (one)", "my-tiny-one-"),
        ("models/tiny/", "tiny"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_name(model: str, name: str) -> None:
    assert model_name(model) == name


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    assert model_name(".") == "tiny"
