"""From a ``SequenceInput`` to a ``Sequence``, or to the reason why the engine cannot run it."""

from __future__ import annotations

import dataclasses

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.port import PromptSegment, SequenceInput
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.tokenizer import Tokenizer


class InvalidSequence(ValueError):
    """The engine cannot run a sequence; the message says why and what to do. Never leaves the engine."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptLimits:
    """What the model and the cache allow. ``eos_ids`` end an output unless it ignores them."""

    vocab_size: int
    max_model_len: int
    num_blocks: int
    eos_ids: frozenset[int]


class PromptEncoder:
    """Encodes prompts and checks sequences against the limits."""

    def __init__(self, tokenizer: Tokenizer, limits: PromptLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def encode(self, segments: tuple[PromptSegment, ...]) -> list[int]:
        """Return the ids of a prompt: BOS once if the model has one, then every segment's own ids.

        Raises InvalidSequence for text that is no Unicode (a lone surrogate).
        """
        ids: list[int] = []
        for segment in segments:
            if segment.token_ids is not None:
                ids += segment.token_ids
            else:
                _check_text(segment.text)
                ids += self._tokenizer.encode(segment.text, is_first=not ids, is_value=segment.is_value)
        prefix = self._tokenizer.prefix_ids
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def plain_ids(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``ids``, or () if one of them is a special token or has no text."""
        return ids if self._tokenizer.is_plain(ids) else ()

    def prepare(self, source: SequenceInput, arrival: int) -> Sequence:
        """Return the sequence, ready to be scheduled. Raises InvalidSequence."""
        limits, sampling = self._limits, source.sampling
        prompt_ids = self.encode(source.segments)
        self._check_ids(prompt_ids, source)
        longest = limits.max_model_len - 1
        if len(prompt_ids) > longest:
            raise InvalidSequence(
                f"the prompt has {len(prompt_ids)} tokens, but the model takes {limits.max_model_len}, at least one of "
                f"output among them: shorten it to {longest}, or start the engine with a larger max_model_len"
            )
        max_output_tokens = min(sampling.max_tokens, limits.max_model_len - len(prompt_ids))
        # The last token's keys and values are never needed.
        num_blocks = -(-(len(prompt_ids) + max_output_tokens - 1) // BLOCK_SIZE)
        if num_blocks > limits.num_blocks:
            raise InvalidSequence(
                f"{len(prompt_ids)} prompt and {max_output_tokens} output tokens need {num_blocks} blocks of KV cache, "
                f"but the engine has {limits.num_blocks}: lower max_tokens, shorten the prompt, or give the engine "
                "more kv_memory_bytes"
            )
        stop_ids = frozenset(sampling.stop_token_ids)
        return Sequence(
            source,
            prompt_ids,
            Detokenizer(self._tokenizer.decode, sampling.stop),
            arrival=arrival,
            max_output_tokens=max_output_tokens,
            stop_ids=stop_ids if sampling.ignore_eos else stop_ids | limits.eos_ids,
        )

    def prepare_prompt(self, source: SequenceInput, arrival: int) -> Sequence:
        """Return the sequence of a prompt after which nothing is to be generated. Raises InvalidSequence."""
        bare = dataclasses.replace(source, sampling=SamplingParams(max_tokens=1), forced_ids=())
        return self.prepare(bare, arrival)

    def _check_ids(self, prompt_ids: list[int], source: SequenceInput) -> None:
        if not prompt_ids:
            raise InvalidSequence("the prompt is empty: give it at least one token of text")
        named = {
            "the prompt": prompt_ids,
            "forced_ids": source.forced_ids,
            "stop_token_ids": source.sampling.stop_token_ids,
            "logit_bias": source.sampling.logit_bias,
        }
        for name, ids in named.items():
            for token_id in ids:
                if not 0 <= token_id < self._limits.vocab_size:
                    raise InvalidSequence(
                        f"{name} holds token id {token_id}, but the model's vocabulary ends at "
                        f"{self._limits.vocab_size - 1}: use the ids of this engine's tokenizer"
                    )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidSequence(f"the prompt is no Unicode text at character {error.start}: clean it up") from None
