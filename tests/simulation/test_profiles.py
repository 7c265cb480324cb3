"""Profiles: data with sources, complete, and wrong ones are said to be wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orjson
import pytest

from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel
from parrot_workers.simulation.profiles import load_profile, profile_names

PARAMETERS = {field.name for field in dataclasses.fields(CostModel)} | {
    "num_blocks", "block_size", "max_num_seqs", "max_model_len",
}  # fmt: skip


@pytest.mark.parametrize("name", profile_names())
def test_every_parameter_says_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.sources) == PARAMETERS
    assert all(len(source.split()) >= 4 for source in profile.sources.values())
    assert profile.cost.prefill_ms(1000) > 0
    assert profile.cost.decode_step_ms(2, 2000) > profile.cost.decode_step_ms(1, 1000) > 0
    assert profile.kv_tokens == profile.num_blocks * profile.block_size > profile.max_num_seqs


def test_the_reference_machines_and_a_current_one_come_along() -> None:
    assert {"a100-13b", "a6000-7b", "h200-8b"} <= set(profile_names())


def test_a_profile_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(orjson.dumps(_values()))
    profile = load_profile(str(path))
    assert profile.name == "mine"
    assert profile.cost == CostModel(decode_base_ms=7.0)
    assert profile.kv_tokens == 1600


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": {"num_blocks": "Counted by hand."}}, "where these come from: block_size, decode_base_ms, max_"),
        ({"cost": {"decode_bse_ms": 7}}, "decode_bse_ms"),
        ({"cost": {"decode_base_ms": "fast"}}, "fast"),
        ({"cost": 7}, "not made as one"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_what_is_no_profile_is_said_so(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(orjson.dumps(_values() | change))
    with pytest.raises(ConfigError, match=said):
        load_profile(str(path))


def test_a_profile_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no profile 'a100'.*one of .*a100-13b"):
        load_profile("a100")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        load_profile(str(tmp_path / "torn.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="not made as one"):
        load_profile(str(tmp_path / "list.json"))


def _values() -> dict[str, object]:
    sizes = {"num_blocks": 100, "block_size": 16, "max_num_seqs": 8, "max_model_len": 1024}
    sources = dict.fromkeys([*sizes, "decode_base_ms"], "Made up for this test.")
    return sizes | {"description": "a test", "cost": {"decode_base_ms": 7}, "sources": sources}
