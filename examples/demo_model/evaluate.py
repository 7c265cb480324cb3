"""Measure the demo model on steps and whole meetings that training never used.

    python examples/demo_model/evaluate.py --model workers/parrot_workers/demo_model [--json]

For bf16 and float32: exact match of generated answers for each kind of step; the same for more steps without
generating (greedy decoding repeats the answer exactly if every token of it is the likeliest after those in
front), with the smallest lead of a right token; and whole meetings, map-reduce and chain, where each stage
reads what the model wrote before.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from encoder import Encoder
from steps import Kind, Size, Step, chain_prompt, make_step, map_prompt, reduce_prompt, size_at
from transformers import AutoModelForCausalLM, AutoTokenizer

from parrot_mq.demo.meetings import NOTHING, Dice, Meeting, demo_stream, make_meeting
from parrot_mq.demo.prompts import MAX_REDUCE_ARITY

Prompt = tuple[str, ...]
FIRST_STEP_SEED = 1_000_000  # demo seeds of the single steps, far from those of the meetings
MAX_NEW_TOKENS = 160
TOP_LEVEL = 9


class Reader:
    """The model, loaded once: answers prompts greedily, and says how sure it is of given answers."""

    def __init__(self, folder: Path, dtype: torch.dtype, batch_size: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._encoder = Encoder(self._tokenizer)
        self._batch_size = batch_size

    def num_tokens(self, text: str) -> int:
        """Length of a text in tokens of this model."""
        return len(self._encoder.segment(text))

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers in the prompts' order. Prompts of like length run together, padded at the left."""
        encoded = [self._encoder.prompt(prompt) for prompt in prompts]
        written = [""] * len(prompts)
        for rows in self._batches([len(ids) for ids in encoded]):
            width = max(len(encoded[row]) for row in rows)
            pad = self._tokenizer.pad_token_id
            tokens = torch.tensor([[pad] * (width - len(encoded[row])) + encoded[row] for row in rows])
            mask = torch.tensor([[0] * (width - len(encoded[row])) + [1] * len(encoded[row]) for row in rows])
            output = self._model.generate(tokens, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS)
            for row, ids in zip(rows, output[:, width:], strict=True):
                written[row] = self._tokenizer.decode(ids, skip_special_tokens=True)
        return written

    @torch.inference_mode()
    def leads(self, steps: Sequence[Step]) -> list[float]:
        """For each step, the smallest lead in logits of a right answer token over the best wrong one.

        Positive means that greedy decoding writes exactly this answer.
        """
        prompts = [self._encoder.prompt(step.segments) for step in steps]
        answers = [self._encoder.answer(step.answer) for step in steps]
        smallest = [0.0] * len(steps)
        for rows in self._batches([len(prompts[row]) + len(answers[row]) for row in range(len(steps))]):
            width = max(len(prompts[row]) + len(answers[row]) for row in rows)
            tokens = torch.zeros(len(rows), width, dtype=torch.long)
            for place, row in enumerate(rows):
                ids = prompts[row] + answers[row]
                tokens[place, : len(ids)] = torch.tensor(ids)
            logits = self._model(tokens).logits.float()
            for place, row in enumerate(rows):
                start = len(prompts[row]) - 1
                right = torch.tensor(answers[row])[:, None]
                own = logits[place, start : start + len(right)]
                chosen = own.gather(1, right)
                smallest[row] = (chosen - own.scatter(1, right, -torch.inf).max(1, keepdim=True).values).min().item()
        return smallest

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]


def held_out_steps(kind: Kind, count: int, first: int) -> list[Step]:
    """Steps of demo streams: half of the demo's size, half of any size that was trained."""
    steps = []
    for number in range(count):
        dice = Dice(demo_stream(FIRST_STEP_SEED * (1 + list(Kind).index(kind)) + first + number))
        steps.append(make_step(kind, dice, Size() if number % 2 else size_at(TOP_LEVEL, dice)))
    return steps


def measure_steps(reader: Reader, num_generated: int, num_scored: int) -> dict[str, Any]:
    """Exact matches of each kind of step."""
    report: dict[str, Any] = {}
    for kind in Kind:
        steps = held_out_steps(kind, num_generated, 0)
        written = reader.answers([step.segments for step in steps])
        leads = reader.leads(held_out_steps(kind, num_scored, num_generated))
        report[kind.value] = {
            "generated": num_generated,
            "generated_exact": sum(text == step.answer for text, step in zip(written, steps, strict=True)),
            "scored": num_scored,
            "scored_exact": sum(lead > 0 for lead in leads),
            "smallest_lead": round(min(leads), 3),
        }
    return report


def summarise_by_tree(reader: Reader, meetings: Sequence[Meeting]) -> tuple[list[str], int]:
    """Final notes by map-reduce, and the number of wrong map lines. All meetings go through a stage together."""
    chunks = [chunk for meeting in meetings for chunk in meeting.chunks]
    lines = reader.answers([map_prompt(chunk) for chunk in chunks])
    expected = [line for meeting in meetings for line in meeting.expected_lines]
    wrong = sum(line != right for line, right in zip(lines, expected, strict=True))
    levels: list[list[str]] = []
    for meeting in meetings:
        levels.append(lines[: len(meeting.chunks)])
        lines = lines[len(meeting.chunks) :]
    while any(len(level) > 1 for level in levels):
        groups = [
            [level[start : start + MAX_REDUCE_ARITY] for start in range(0, len(level), MAX_REDUCE_ARITY)]
            for level in levels
        ]
        merged = iter(reader.answers([reduce_prompt(group) for level in groups for group in level if len(group) > 1]))
        levels = [[next(merged) if len(group) > 1 else group[0] for group in level] for level in groups]
    return [level[0] for level in levels], wrong


def summarise_by_chain(reader: Reader, meetings: Sequence[Meeting]) -> list[str]:
    """Final notes by a chain over the chunks; the meetings advance side by side."""
    notes = [NOTHING] * len(meetings)
    for chunks in zip(*(meeting.chunks for meeting in meetings), strict=True):
        notes = reader.answers([chain_prompt(chunk, note) for chunk, note in zip(chunks, notes, strict=True)])
    return notes


def measure_meetings(reader: Reader, seeds: Sequence[int]) -> dict[str, Any]:
    """Exact matches of whole meetings, by tree and by chain."""
    meetings = [make_meeting(seed) for seed in seeds]
    expected = [meeting.expected_notes for meeting in meetings]
    trees, wrong_lines = summarise_by_tree(reader, meetings)
    chains = summarise_by_chain(reader, meetings)
    return {
        "seeds": f"{seeds[0]}..{seeds[-1]}",
        "meetings": len(meetings),
        "fewest_tokens": min(reader.num_tokens(meeting.transcript) for meeting in meetings),
        "most_note_tokens": max(reader.num_tokens(notes) for notes in expected),
        "map_steps": sum(len(meeting.chunks) for meeting in meetings),
        "wrong_map_steps": wrong_lines,
        "tree_exact": sum(notes == right for notes, right in zip(trees, expected, strict=True)),
        "chain_exact": sum(notes == right for notes, right in zip(chains, expected, strict=True)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--generated", type=int, default=2000, help="steps of each kind to generate")
    parser.add_argument("--scored", type=int, default=4000, help="steps of each kind to score without generating")
    parser.add_argument("--meetings", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="demo seed of the first meeting")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {}
    for name in args.dtypes:
        began = time.monotonic()
        reader = Reader(args.model, getattr(torch, name), args.batch_size)
        report[name] = {"steps": measure_steps(reader, args.generated, args.scored)}
        if args.meetings:
            seeds = range(args.first_seed, args.first_seed + args.meetings)
            report[name]["documents"] = measure_meetings(reader, seeds)
        report[name]["seconds"] = round(time.monotonic() - began, 1)
    if args.json:
        print(json.dumps(report))
        return
    for name, figures in report.items():
        print(name)
        for kind, row in figures["steps"].items():
            print(f"  {kind:7s}", *(f"{key} {value}" for key, value in row.items()), sep="  ")
        print("  whole  ", *(f"{key} {value}" for key, value in figures.get("documents", {}).items()), sep="  ")
        print(f"  {figures['seconds']} s")


if __name__ == "__main__":
    main()
