"""The answer that a perfect model gives to each prompt of the demo."""

from __future__ import annotations

import re

from parrot_mq.demo.meetings import NOTHING, Meeting, extend_notes, merge_notes
from parrot_mq.messages import RequestSpec


class Oracle:
    """Knows the notes of one meeting. Calls are counted by function."""

    def __init__(self, meeting: Meeting) -> None:
        self.notes = {part.text: part.note for part in meeting.parts}
        self.calls: list[str] = []

    def __call__(self, spec: RequestSpec, prompt: str) -> str:
        """Answer a map, a reduce or a chain prompt."""
        self.calls.append(spec.function_name)
        chunk = re.search(r"Transcript:\n(.*?)\n(?:Note:|Notes so far:)\n", prompt, re.DOTALL)
        if spec.function_name == "note_chunk":
            assert chunk is not None
            return self.notes.get(chunk[1], NOTHING)
        if spec.function_name == "extend_notes":
            assert chunk is not None
            notes = re.search(r"Notes so far:\n(.*?)\nAll notes:\n", prompt, re.DOTALL)
            assert notes is not None
            return extend_notes(notes[1], self.notes[chunk[1]])
        parts = re.search(r"Partial notes:\n(.*?)\nAll notes:\n", prompt, re.DOTALL)
        assert parts is not None
        return merge_notes(parts[1].split("\n"))
