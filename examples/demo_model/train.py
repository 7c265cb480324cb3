"""Train the demo model from scratch: tokenizer, Llama, checkpoint.

    python examples/demo_model/train.py --out workers/parrot_workers/demo_model

A curriculum makes it learnable: each kind of step begins with the shortest inputs and gets longer ones each
time its answer loss falls under a bound. Matrices are trained with Muon, everything else with AdamW; the
learning rate is constant and falls to zero over the last part of the run. A short refinement follows, at a
lower rate, on items that share most of their words, which is where the rare errors are.
"""

import argparse
import time
from pathlib import Path

import torch
from checkpoint import build_tokenizer, new_model, save_checkpoint
from encoder import Encoder
from steps import Kind, Step, make_step, size_at
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from parrot_mq.demo.meetings import Dice, training_stream

TOP_LEVEL = 9
STREAMS_PER_STEP = 16  # training streams reserved for one optimiser step
MAX_STEPS = 100_000  # of one run, so that another seed reads other streams
IGNORED = -100


class Curriculum:
    """Level of one kind of step, and the moving average of its answer loss."""

    def __init__(self) -> None:
        self.level = 0
        self.loss = 3.0

    def see(self, loss: float, bound: float) -> None:
        """Take in the loss of one batch; it may end the level."""
        self.loss += 0.1 * (loss - self.loss)
        if self.loss < bound and self.level < TOP_LEVEL:
            self.level += 1
            self.loss = 2 * bound


def batch_of(
    kind: Kind, level: int, stream: int, num_tokens: int, encoder: Encoder, confusable_share: float
) -> list[tuple[list[int], int]]:
    """Steps of one size, about `num_tokens` in all: (ids, number of answer tokens) each."""
    dice = Dice(training_stream(stream))
    size = size_at(level, dice)
    batch: list[tuple[list[int], int]] = []
    while not batch or (len(batch) + 1) * max(len(ids) for ids, _ in batch) <= num_tokens:
        step: Step = make_step(kind, dice, size, confusable_share > 0 and dice.chance(confusable_share))
        answer = encoder.answer(step.answer)
        batch.append((encoder.prompt(step.segments) + answer, len(answer)))
    return batch


def losses(model: LlamaForCausalLM, batch: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of the answers' tokens and of the prompts' tokens. Padding is at the right, behind a causal mask."""
    width = max(len(ids) for ids, _ in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    answers = torch.full((len(batch), width), IGNORED)
    prompts = torch.full((len(batch), width), IGNORED)
    for row, (ids, num_answer) in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        split = len(ids) - num_answer
        prompts[row, :split] = tokens[row, :split]
        answers[row, split : len(ids)] = tokens[row, split : len(ids)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens[:, :-1]).logits
    flat = logits.float().flatten(0, 1)
    return (
        cross_entropy(flat, answers[:, 1:].flatten(), ignore_index=IGNORED),
        cross_entropy(flat, prompts[:, 1:].flatten(), ignore_index=IGNORED),
    )


def optimizers_of(model: LlamaForCausalLM, muon_lr: float, adamw_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def lr_factor(step: int, args: argparse.Namespace) -> float:
    """Share of the full learning rate.

    Warm-up over 50 steps, then constant, then linear to zero over the last `cooldown` share. The refinement
    warms up to a lower rate over 10 steps and falls to zero again.
    """
    if step < args.steps:
        return min(1.0, (step + 1) / 50, (args.steps - step) / max(1.0, args.steps * args.cooldown))
    refined = step - args.steps
    return float(args.refine_rate) * min((refined + 1) / 10, 1 - refined / args.refine_steps)


class Run:
    """One training run: the model and everything that changes with it, so that it can be saved and taken up again."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(args.threads)
        self._args = args
        self._tokenizer = build_tokenizer(args.vocab_size)
        self._encoder = Encoder(self._tokenizer)
        self._model = new_model(self._tokenizer, num_layers=args.layers)
        self._optimizers = optimizers_of(self._model, args.muon_lr, args.adamw_lr)
        self._base_lrs = [args.muon_lr, args.adamw_lr]
        self._curricula = {kind: Curriculum() for kind in Kind}
        self._state_file = args.out.with_suffix(".state.pt")
        self._num_tokens = 0
        self.step = 0

    def resume(self) -> None:
        """Go on from the state file beside the checkpoint."""
        state = torch.load(self._state_file, weights_only=False)
        self._model.load_state_dict(state["model"])
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self._curricula, self.step = state["curricula"], state["step"]

    def save(self) -> None:
        """Write the checkpoint and, beside it, what `resume` needs."""
        save_checkpoint(self._model, self._tokenizer, self._args.out)
        state = {
            "model": self._model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "curricula": self._curricula,
            "step": self.step,
        }
        torch.save(state, self._state_file)

    def train(self) -> None:
        """Take all steps that are left."""
        args, began = self._args, time.monotonic()
        last = args.steps + args.refine_steps
        while self.step < last:
            self._take_step()
            if self.step % args.log_every == 0:
                elapsed = time.monotonic() - began
                shown = "  ".join(f"{kind} L{c.level} {c.loss:.5f}" for kind, c in self._curricula.items())
                print(f"{self.step:5d}  {elapsed:6.0f} s  {self._num_tokens / elapsed:6.0f} tok/s  {shown}", flush=True)
            if self.step % args.save_every == 0 or self.step in (args.steps, last):
                self.save()

    def _take_step(self) -> None:
        args = self._args
        factor = lr_factor(self.step, args)
        refining = self.step >= args.steps
        for optimizer, lr in zip(self._optimizers, self._base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        for place, kind in enumerate(Kind):
            curriculum = self._curricula[kind]
            stream = (args.seed * MAX_STEPS + self.step) * STREAMS_PER_STEP + place
            num_tokens = args.batch_tokens // 3 if refining and kind is Kind.MAP else args.batch_tokens
            confusable_share = args.confusable_share if refining else 0.0
            batch = batch_of(kind, curriculum.level, stream, num_tokens, self._encoder, confusable_share)
            prompt_share = 0.1 if curriculum.level == TOP_LEVEL else 1.0
            answer_loss, prompt_loss = losses(self._model, batch)
            weight = args.prompt_weight * prompt_share
            (answer_loss + weight * prompt_loss).backward()
            curriculum.see(answer_loss.item(), args.bound)
            self._num_tokens += sum(len(ids) for ids, _ in batch)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=1536)
    parser.add_argument("--batch-tokens", type=int, default=3500, help="tokens of each kind in one step")
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--adamw-lr", type=float, default=2e-3)
    parser.add_argument("--prompt-weight", type=float, default=0.2)
    parser.add_argument("--bound", type=float, default=0.1, help="answer loss that ends a level of the curriculum")
    parser.add_argument("--cooldown", type=float, default=0.3, help="share of the steps in which the rate falls")
    parser.add_argument("--refine-steps", type=int, default=300, help="steps after those, on harder examples")
    parser.add_argument("--refine-rate", type=float, default=0.3, help="highest share of the learning rate in them")
    parser.add_argument("--confusable-share", type=float, default=0.6, help="of the harder examples in them")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--resume", action="store_true", help="go on from the state beside the checkpoint")
    args = parser.parse_args()
    run = Run(args)
    if args.resume:
        run.resume()
    run.train()


if __name__ == "__main__":
    main()
