"""The demo model as a Hugging Face folder: its tokenizer, its shape, how it is saved."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from steps import Kind, make_step, size_at
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from parrot_mq.demo.meetings import Dice, training_stream

BOS = "<s>"
EOS = "</s>"
MAX_POSITIONS = 2048
TOKENIZER_STREAM = 1_000_000_000  # far from the streams of the training steps
NUM_TOKENIZER_STEPS = 3000


def _texts() -> Iterator[str]:
    dice = Dice(training_stream(TOKENIZER_STREAM))
    for number in range(NUM_TOKENIZER_STEPS):
        step = make_step(list(Kind)[number % 3], dice, size_at(9, dice))
        yield from step.segments
        yield step.answer


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE. No space is put in front of a text, so segments may be tokenised one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, num_layers: int) -> LlamaForCausalLM:
    """A Llama of the demo's shape with random weights in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder, weights in bf16. The model itself stays as it is."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_portable_class(folder / "tokenizer_config.json")
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights are written for their owner alone


def _name_portable_class(config_file: Path) -> None:
    """transformers 5 names a tokenizer class that version 4 lacks; both know this one."""
    config = json.loads(config_file.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_file.write_text(json.dumps(config, indent=2) + "\n")
