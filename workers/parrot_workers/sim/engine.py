"""The simulated engine: continuous batching, block accounting and costs, without a model."""

from __future__ import annotations

import bisect
import dataclasses

from parrot_mq.messages import CostModel
from parrot_workers.engine.cost_correction import CostCorrection
from parrot_workers.engine.port import EngineSpec, EngineStats, FinishReason, SequenceInput, SequenceOutput
from parrot_workers.sim.clock import Clock, RealClock
from parrot_workers.sim.prefix_cache import PrefixCache
from parrot_workers.sim.script import Script, count_tokens, write_script

PREFILL_BUDGET = 2048
"""Uncached prompt tokens that one step computes."""


@dataclasses.dataclass(slots=True)
class _Sequence:
    input: SequenceInput
    prompt: str
    num_prompt_tokens: int
    num_blocks: int
    script: Script
    num_cached: int = 0
    num_to_prefill: int = 0
    num_done: int = 0
    """Tokens of the script that are out, those forced by an earlier attempt included."""

    @property
    def context(self) -> int:
        return self.num_prompt_tokens + self.num_done


class SimEngine:
    """Runs scripts instead of a model.

    A step costs what ``cost`` says, or ``true_cost`` if that is not what it announces: prefill of the prompts that
    begin (cached prefix blocks are free), plus one decode step of everything that is prefilled. A sequence reserves
    blocks for its prompt and ``max_tokens`` when it is admitted, in order of rank; nothing is ever preempted.
    Text: see ``script``.
    """

    def __init__(
        self,
        model: str = "sim",
        *,
        cost: CostModel | None = None,
        true_cost: CostModel | None = None,
        clock: Clock | None = None,
        max_num_seqs: int = 256,
        max_model_len: int = 32_768,
        block_size: int = 16,
        num_blocks: int = 65_536,
        mean_output_tokens: int = 0,
    ) -> None:
        self._spec = EngineSpec(
            model=model,
            kind="sim",
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=block_size,
            num_blocks=num_blocks,
            tokenizer_digest="sim",
            cost=cost or CostModel(),
        )
        self._true_cost = true_cost or self._spec.cost
        self._costs = CostCorrection(self._spec.cost)
        self._clock = clock or RealClock()
        self._mean_output_tokens = mean_output_tokens
        self._cache = PrefixCache(block_size, num_blocks)
        self._waiting: list[_Sequence] = []
        self._running: dict[str, _Sequence] = {}
        self._unsaid: list[SequenceOutput] = []
        """What ``add`` and ``abort`` have to say: invalid and aborted sequences, forced tokens."""
        self._num_used_blocks = 0
        self._num_generated = 0
        self._num_prefilled = 0
        self._num_cached = 0

    @property
    def spec(self) -> EngineSpec:
        """What is fixed about it."""
        return self._spec

    def add(self, sequence: SequenceInput) -> None:
        """Queue a sequence by its rank."""
        prompt = "".join(segment.text for segment in sequence.segments)
        num_tokens = max(1, sum(count_tokens(segment.text) for segment in sequence.segments))
        room = self._spec.max_model_len - num_tokens
        if room < 1:
            error = (
                f"the prompt has {num_tokens} tokens, model {self._spec.model} takes "
                f"{self._spec.max_model_len - 1}; shorten the prompt or split the input"
            )
            self._end(sequence.id, FinishReason.INVALID, num_tokens, error)
            return
        num_blocks = -(-(num_tokens + min(sequence.sampling.max_tokens, room)) // self._spec.block_size)
        if num_blocks > self._spec.num_blocks:
            error = f"{num_blocks} blocks are needed, the engine has {self._spec.num_blocks}; ask for fewer max_tokens"
            self._end(sequence.id, FinishReason.INVALID, num_tokens, error)
            return
        script = write_script(prompt, sequence.sampling, self._mean_output_tokens, room)
        new = _Sequence(sequence, prompt, num_tokens, num_blocks, script)
        new.num_done = min(len(sequence.forced_ids), len(script.token_ids))
        if new.num_done:
            text = script.text[: script.certain[new.num_done - 1]]
            self._unsaid.append(SequenceOutput(sequence.id, script.token_ids[: new.num_done], text))
        bisect.insort(self._waiting, new, key=lambda waiting: waiting.input.rank)

    def abort(self, sequence_id: str) -> None:
        """End a sequence; unknown ids are ignored."""
        running = self._running.pop(sequence_id, None)
        if running is not None:
            self._num_used_blocks -= running.num_blocks
            self._end(sequence_id, FinishReason.ABORTED, running.num_prompt_tokens, "")
            return
        for index, waiting in enumerate(self._waiting):
            if waiting.input.id == sequence_id:
                del self._waiting[index]
                self._end(sequence_id, FinishReason.ABORTED, waiting.num_prompt_tokens, "")
                return

    def step(self) -> list[SequenceOutput]:
        """Admit, prefill, decode one token of everything that is prefilled, and spend the time that takes."""
        self._admit()
        prefilled = self._prefill()
        decoding = [sequence for sequence in self._running.values() if sequence.num_to_prefill == 0]
        context = sum(sequence.context for sequence in decoding)
        announced_ms, true_ms = (
            (cost.prefill_ms(prefilled), cost.decode_step_ms(len(decoding), context) if decoding else 0.0)
            for cost in (self._spec.cost, self._true_cost)
        )
        self._clock.spend(sum(true_ms))
        self._costs.observe(*announced_ms, sum(true_ms))
        outputs, self._unsaid = self._unsaid, []
        outputs += [self._decode(sequence) for sequence in decoding]
        return outputs

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks=self._spec.num_blocks,
            num_free_blocks=self._spec.num_blocks - self._num_used_blocks,
            num_generated_tokens=self._num_generated,
            num_prefill_tokens=self._num_prefilled,
            num_cached_tokens=self._num_cached,
            cost=self._costs.corrected,
        )

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(self._running or self._waiting or self._unsaid)

    def check(self) -> None:
        """Raise AssertionError if the blocks in use are not those of the running sequences."""
        held = sum(sequence.num_blocks for sequence in self._running.values())
        assert held == self._num_used_blocks, f"{self._num_used_blocks} blocks in use, running sequences have {held}"

    def close(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._running.clear()
        self._unsaid.clear()
        self._num_used_blocks = 0

    def _end(self, sequence_id: str, finish: FinishReason, num_prompt_tokens: int, error: str) -> None:
        self._unsaid.append(
            SequenceOutput(sequence_id, finish=finish, num_prompt_tokens=num_prompt_tokens, error=error)
        )

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._spec.max_num_seqs:
            sequence = self._waiting[0]
            if self._num_used_blocks + sequence.num_blocks > self._spec.num_blocks:
                return
            del self._waiting[0]
            self._num_used_blocks += sequence.num_blocks
            # The last token is always computed: its logits are what the first output is drawn from.
            cached = self._cache.read(sequence.prompt, sequence.input.salt)
            sequence.num_cached = min(cached, sequence.num_prompt_tokens - 1)
            sequence.num_to_prefill = sequence.context - sequence.num_cached
            self._num_cached += sequence.num_cached
            self._running[sequence.input.id] = sequence

    def _prefill(self) -> int:
        budget = PREFILL_BUDGET
        for sequence in self._running.values():
            part = min(budget, sequence.num_to_prefill)
            sequence.num_to_prefill -= part
            budget -= part
            if budget == 0:
                break
        self._num_prefilled += PREFILL_BUDGET - budget
        return PREFILL_BUDGET - budget

    def _decode(self, sequence: _Sequence) -> SequenceOutput:
        script, index = sequence.script, sequence.num_done
        token_ids, text = script.token_ids[index : index + 1], ""
        if token_ids:
            sequence.num_done += 1
            self._num_generated += 1
            text = script.text[script.certain[index - 1] if index else 0 : script.certain[index]]
        finished = sequence.num_done == len(script.token_ids)
        if not finished:
            return SequenceOutput(sequence.input.id, token_ids, text)
        del self._running[sequence.input.id]
        self._num_used_blocks -= sequence.num_blocks
        return SequenceOutput(
            id=sequence.input.id,
            token_ids=token_ids,
            text=text,
            finish=script.finish,
            full_text=script.text,
            full_token_ids=() if script.cut else script.token_ids,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached,
            num_output_tokens=sequence.num_done,
        )
