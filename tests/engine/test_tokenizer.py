"""Prompts from pieces: BOS once, no spaces that nobody wrote, special tokens in values stay text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from parrot_workers.engine.port import PromptSegment
from parrot_workers.engine.prompt import PromptEncoder, PromptLimits
from parrot_workers.engine.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "hello world, hello there: the parrot said hello again and again.\n",
    "user asked the assistant, the assistant said </s> or <|im_end|> or <think>\n",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def finish(tokenizer: tokenizers.Tokenizer, *, bos: str = "<s> $A") -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=bos, special_tokens=ids)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return Tokenizer(fast)


def byte_level() -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>", "    "])
    return finish(tokenizer)


def metaspace_bpe() -> Tokenizer:
    """As in Llama 2: the normalizer puts the space, bytes stand for what is unknown."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([line.replace("\n", "") for line in CORPUS], trainer)
    rebuilt = tokenizers.Tokenizer.from_str(_only_special(tokenizer.to_str()))
    rebuilt.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finish(rebuilt)


def _only_special(content: str) -> str:
    """Byte tokens are ordinary entries of the vocabulary, not added tokens."""
    data = json.loads(content)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in SPECIAL]
    return json.dumps(data)


def metaspace_unigram() -> Tokenizer:
    """As in T5 and XLNet: the special tokens are pieces of the vocabulary, of the best score there is."""
    pieces = sorted(set("".join(CORPUS).replace("\n", "").replace(" ", "▁")) | {"▁"})
    words = ["▁hello", "hello", "▁world", "world", "▁the", "the", "▁parrot", "said", "▁said"]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(w, -2.0) for w in words] + [(p, -5.0) for p in pieces]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return finish(tokenizer, bos="$A </s>")


def word_piece() -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finish(tokenizer, bos="<s> $A </s>")


EXACT: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "metaspace bpe": metaspace_bpe,
    "metaspace unigram": metaspace_unigram,
}
"""Tokenizers that give back any text of their alphabet."""
ALL = {**EXACT, "word piece": word_piece}


def encoder_of(tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, PromptLimits(tokenizer.size, 1000, 1000, frozenset()))


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
@pytest.mark.parametrize(
    "pieces",
    [
        ["hello", "world"],
        ["hello ", "world"],
        ["hello", " world"],
        ["", "hello", "", "world"],
        ["the parrot said: ", "hello", ", ", "again", "."],
        ["a", "g", "a"],
    ],
)
def test_segments_meet_without_extra_spaces(make: Callable[[], Tokenizer], pieces: list[str]) -> None:
    tokenizer = make()
    for values in (False, True):
        segments = tuple(PromptSegment(piece, is_value=values and bool(i % 2)) for i, piece in enumerate(pieces))
        assert tokenizer.decode(encoder_of(tokenizer).encode(segments)) == "".join(pieces)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_prefixes_meet_at_segment_borders(make: Callable[[], Tokenizer]) -> None:
    encoder = encoder_of(make())
    head = (PromptSegment("the parrot said: "), PromptSegment("hello world", is_value=True))
    first = encoder.encode((*head, PromptSegment(" again")))
    second = encoder.encode((*head, PromptSegment("and the assistant")))
    whole_head = encoder.encode(head)
    assert first[: len(whole_head)] == second[: len(whole_head)] == whole_head


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("special", ["</s>", "<|im_end|>", "<s>"])
def test_special_tokens_in_values_stay_text(make: Callable[[], Tokenizer], special: str) -> None:
    tokenizer = make()
    for text in (special, f"hello {special} world{special}", special * 3, special[:-1] + special):
        for is_first in (True, False):
            ids = tokenizer.encode(text, is_first=is_first, is_value=True)
            assert tokenizer.special_ids.isdisjoint(set(ids) - {0})
            if make in EXACT.values() and 0 not in ids:
                assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
def test_values_lose_nothing_to_special_tokens(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    ids = tokenizer.encode("hello </s> world", is_first=True, is_value=True)
    assert 0 not in ids
    assert tokenizer.decode(ids) == "hello </s> world"


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_special_tokens_in_a_template_are_tokens(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    for is_first in (True, False):
        ids = tokenizer.encode("hello<|im_end|>", is_first=is_first, is_value=False)
        assert ids[-1] == SPECIAL.index("<|im_end|>")


def test_tags_in_values_stay_text_and_runs_of_spaces_stay_tokens() -> None:
    tokenizer = byte_level()
    for is_value in (True, False):
        ids = tokenizer.encode("<think>    x", is_first=False, is_value=is_value)
        assert (tokenizer.encode("<think>", is_first=False, is_value=False)[0] in ids) == (not is_value)
        assert tokenizer.encode("    ", is_first=False, is_value=False)[0] in ids
        assert tokenizer.decode(ids) == "<think>    x"


def test_bos_stands_once_and_eos_never() -> None:
    segments = (PromptSegment("hello"), PromptSegment("hello"), PromptSegment("world"))
    for make in ALL.values():
        tokenizer = make()
        ids = encoder_of(tokenizer).encode(segments)
        adds_bos = make is not metaspace_unigram
        assert tokenizer.prefix_ids == ([1] if adds_bos else [])
        assert ids.count(1) == (1 if adds_bos else 0)
        assert ids[0] == 1 or not adds_bos
        assert 2 not in ids
    # A chat template that brings its own BOS does not get a second one.
    assert encoder_of(byte_level()).encode((PromptSegment("<s>hello"),)).count(1) == 1


def test_known_ids_are_used_as_they_are() -> None:
    encoder = encoder_of(byte_level())
    segments = (PromptSegment("hello "), PromptSegment("x", is_value=True, token_ids=(9, 8, 7)), PromptSegment("!"))
    ids = encoder.encode(segments)
    assert tuple(ids[-4:-1]) == (9, 8, 7)


def test_a_tokenizer_without_a_fast_backend() -> None:
    class Slow:
        """The few calls that a tokenizer written in Python answers."""

        eos_token_id, all_special_ids, added_tokens_decoder = 1, [1], dict[int, object]()

        def __len__(self) -> int:
            return 128

        def __call__(self, text: str, **flags: bool) -> dict[str, list[int]]:
            special = not flags.get("split_special_tokens", False)
            ids = [ord(c) for c in (text.replace("</s>", "\x01") if special else text)]
            return {"input_ids": ids}

        def decode(self, ids: list[int], **flags: bool) -> str:
            return "".join(chr(i) for i in ids if i != 1)

        def convert_ids_to_tokens(self, token_id: int) -> str:
            return "</s>"

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(128)}

    tokenizer = Tokenizer(Slow())
    assert tokenizer.encode("a</s>", is_first=True, is_value=False) == [97, 1]
    assert tokenizer.decode(tokenizer.encode("a</s>", is_first=False, is_value=True)) == "a</s>"
    assert tokenizer.prefix_ids == []


def test_digest_is_that_of_the_file(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama")
    expected = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert load_tokenizer(str(folder)).digest == expected
