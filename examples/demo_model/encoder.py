"""Token ids of the pipeline's steps."""

from transformers import PreTrainedTokenizerFast


class Encoder:
    """Tokenises as the pipeline does: BOS, then every segment on its own; the answer on its own, then EOS."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def segment(self, text: str) -> list[int]:
        """Ids of one segment."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def prompt(self, segments: tuple[str, ...]) -> list[int]:
        """Ids in front of the first answer token."""
        return [self._tokenizer.bos_token_id, *(token for text in segments for token in self.segment(text))]

    def answer(self, text: str) -> list[int]:
        """Ids that the model should write, EOS included."""
        return [*self.segment(text), self._tokenizer.eos_token_id]
