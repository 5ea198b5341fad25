"""A full GRPO step, sampling included: ours, a hand-written transformers loop, and TRL's GRPOTrainer.

    python benchmarks/steps_grpo.py                                 # a random Llama, prompts of 64 and of 256 tokens
    python benchmarks/steps_grpo.py --model smollm2 --prompt-lengths 64 --ways "TRL tuned, dynamic cache" --rounds 1

One step: sample 8 answers to each prompt at temperature 1, all of the same number of tokens (nothing stops early), score
them with a cheap function, take advantages within the group, compute the clipped policy-gradient loss as a mean over tokens
without a KL term, and make one AdamW update. Before anything is timed, the loss and the gradient's norm of given answers
must agree; what is sampled differs, so the losses of the steps do.

* ours: `save_weights_and_get_sampling_client`, `sample_batch`, `group_advantages`, `forward_backward(..., "grpo")`, `optim_step`
* hand-written: `generate`, log_softmax of the logits, torch's AdamW
* TRL defaults: `GRPOConfig()`, which is bfloat16 autocast, gradient checkpointing, micro-batches of 8
* TRL tuned: the weights' own precision, no checkpointing, fused AdamW, no logs, one batch; sampling with either cache

The aim: at least 2 times the speed of TRL's fastest working configuration.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import measuring
import torch
import transformers
import workloads
from steps import (
    ADAM,
    NARROW,
    TOLERANCE,
    Step,
    adam_params,
    batches_of,
    compare,
    narrow,
    parse,
    parser,
    peer_module,
    update,
    wanted,
)

import lossbook as lb
from lossbook.losses import advantages

DEFAULT_MODELS = ("random-llama-67m",)
DEFAULTS = "TRL defaults"
SAMPLES = 8
#: An end-of-sequence token that no model ever samples, so that all answers have the same length.
NEVER = 2**31 - 1


def reward(tokens: Sequence[int]) -> float:
    """The number of even tokens in the answer."""
    return float(sum(token % 2 == 0 for token in tokens))


def make_prompts(count: int, length: int, seed: int = 0) -> list[str]:
    """Random digits, for tokenizers that take digits singly and for those of bytes: `length` tokens each, or up to a quarter
    less with other seeds."""
    drawn, length = random.Random(seed), length - seed % 5 * (length // 16)
    return ["".join(drawn.choices("0123456789", k=length)) for _ in range(count)]


# --- ours -------------------------------------------------------------------------------------------------------------


class Ours:
    """The step as a user of lossbook writes it."""

    def __init__(self, folder: str, batches: Sequence[Sequence[str]], options: argparse.Namespace) -> None:
        service = lb.ServiceClient(device=options.device, dtype=options.dtype)
        self.training = service.create_training_client(folder)
        tokenizer = self.training.get_tokenizer()
        tokens = [[tokenizer(prompt)["input_ids"] for prompt in prompts] for prompts in batches]
        self.prompts, self.batches = tokens[0], itertools.cycle(tokens)
        self.sampling = lb.SamplingParams(max_tokens=options.new_tokens, temperature=1.0, stop=[])

    def __call__(self) -> float:
        self.prompts = next(self.batches)
        sampler = self.training.save_weights_and_get_sampling_client()
        answers = [r.sequences for r in sampler.sample_batch(self.prompts, self.sampling, num_samples=SAMPLES).result()]
        rewards = [reward(sequence.tokens) for group in answers for sequence in group]
        groups = [number for number, group in enumerate(answers) for _ in group]
        advantage_list = advantages.group_advantages(rewards, groups, epsilon=1e-4).tolist()
        trajectories = [
            lb.Trajectory(
                prompt_tokens=self.prompts[number],
                response_tokens=sequence.tokens,
                sampling_logprobs=sequence.logprobs,
                advantages=advantage,
            )
            for number, advantage, sequence in zip(groups, advantage_list, (s for g in answers for s in g), strict=True)
        ]
        datums = lb.datums_from_trajectories(trajectories)
        output = self.training.forward_backward(datums, "grpo", {"kl_coefficient": 0.0})
        self.training.optim_step(adam_params()).result()
        return output.result().metrics["loss:sum"]

    def loss_and_norm(self, answers: torch.Tensor, sampling: torch.Tensor, given: torch.Tensor) -> tuple[float, float]:
        """Of given answers [prompts x samples, tokens], logprobs they were sampled with, and advantages [answers]."""
        made = datums(self.prompts, answers, sampling, given)
        output = self.training.forward_backward(made, "grpo", {"kl_coefficient": 0.0}).result()
        step = self.training.optim_step(lb.AdamParams(learning_rate=0.0)).result()
        return output.metrics["loss:sum"], step.metrics["grad_norm"]


def datums(
    prompts: Sequence[Sequence[int]], answers: torch.Tensor, sampling: torch.Tensor, given: torch.Tensor
) -> list[lb.Datum]:
    """A datum for each of the answers [prompts x samples, tokens], with the logprobs they were sampled with and advantages."""
    trajectories = [
        lb.Trajectory(
            prompt_tokens=prompts[row // SAMPLES],
            response_tokens=answers[row].tolist(),
            sampling_logprobs=sampling[row].tolist(),
            advantages=float(given[row]),
        )
        for row in range(len(answers))
    ]
    return lb.datums_from_trajectories(trajectories)


# --- by hand ----------------------------------------------------------------------------------------------------------


class HandWritten:
    """A straightforward hand-written loop."""

    def __init__(self, folder: str, batches: Sequence[Sequence[str]], options: argparse.Namespace) -> None:
        self.model = peer_module(folder, options).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **ADAM)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        rows = [[tokenizer(prompt)["input_ids"] for prompt in prompts for _ in range(SAMPLES)] for prompts in batches]
        tensors = [torch.tensor(each, device=options.device) for each in rows]
        self.prompts, self.batches = tensors[0], itertools.cycle(tensors)
        self.new_tokens = options.new_tokens

    def __call__(self) -> float:
        self.prompts = next(self.batches)
        sampled = self.model.generate(
            input_ids=self.prompts,
            attention_mask=torch.ones_like(self.prompts),
            max_new_tokens=self.new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=NEVER,
            pad_token_id=0,
        )
        answers = sampled[:, self.prompts.shape[1] :]
        rewards = torch.tensor([reward(answer) for answer in answers.tolist()]).view(-1, SAMPLES)
        centred = rewards - rewards.mean(1, keepdim=True)
        given = (centred / (rewards.std(1, keepdim=True) + 1e-4)).view(-1).to(answers.device)
        loss = self.loss(answers, None, given)
        loss.backward()
        update(self.model, self.optimizer)
        return loss.item()

    def loss(self, answers: torch.Tensor, sampling: torch.Tensor | None, given: torch.Tensor) -> torch.Tensor:
        """The clipped surrogate; `sampling` None stands for on-policy."""
        start = self.prompts.shape[1]
        logits = self.model(input_ids=torch.cat([self.prompts, answers], 1)).logits[:, start - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(2, answers[..., None])[..., 0]
        ratio = (logprobs - (logprobs.detach() if sampling is None else sampling)).exp()
        surrogate = torch.minimum(ratio * given[:, None], ratio.clamp(0.8, 1.2) * given[:, None])
        return -surrogate.mean()

    def loss_and_norm(self, answers: torch.Tensor, sampling: torch.Tensor, given: torch.Tensor) -> tuple[float, float]:
        """As Ours.loss_and_norm."""
        loss = self.loss(answers, sampling, given)
        loss.backward()
        return loss.item(), gradient_norm(self.model)


def gradient_norm(model: torch.nn.Module) -> float:
    """The norm of the accumulated gradient, which is cleared."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")).item()
    model.zero_grad()
    return norm


# --- TRL --------------------------------------------------------------------------------------------------------------


class Trl:
    """GRPOTrainer on the same prompts and reward."""

    def __init__(
        self, folder: str, batches: Sequence[Sequence[str]], options: argparse.Namespace, **settings: Any
    ) -> None:
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl_training import SAME_STEP, PausedTraining, repeated, trl_module

        rows = len(batches[0]) * SAMPLES
        same = {"per_device_train_batch_size": rows, "num_generations": SAMPLES, "steps_per_generation": 1, "beta": 0.0}
        same |= {
            "max_completion_length": options.new_tokens,
            "temperature": 1.0,
            "epsilon": 0.2,
            "shuffle_dataset": False,
        }
        same |= {"generation_kwargs": {"eos_token_id": NEVER, **settings.pop("generation", {})}}
        arguments = {
            **SAME_STEP,
            "use_cpu": options.device == "cpu",
            "output_dir": tempfile.mkdtemp(),
            **same,
            **settings,
        }
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        trainer = GRPOTrainer(
            model=trl_module(folder, options),
            reward_funcs=lambda completion_ids, **_: [reward(tokens) for tokens in completion_ids],
            args=GRPOConfig(**arguments),
            train_dataset=repeated(
                [{"prompt": prompt} for prompts in batches for prompt in prompts], options.rounds + 8
            ),
            processing_class=tokenizer,
        )
        trainer.eos_token_ids = [NEVER]
        self.trainer: Any = trainer
        self.prompts = [tokenizer(prompt)["input_ids"] for prompt in batches[0] for _ in range(SAMPLES)]
        self.step = PausedTraining(trainer)

    def __call__(self) -> float:
        return self.step()

    def close(self) -> None:
        """End the training."""
        self.step.close()
        del self.trainer

    def loss_and_norm(self, answers: torch.Tensor, sampling: torch.Tensor, given: torch.Tensor) -> tuple[float, float]:
        """As Ours.loss_and_norm."""
        prompts = torch.tensor(self.prompts, device=answers.device)
        inputs = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": answers,
            "completion_mask": torch.ones_like(answers),
            "advantages": given,
            "old_per_token_logps": sampling,
            "num_items_in_batch": torch.tensor(answers.numel(), device=answers.device),
        }
        self.trainer.current_gradient_accumulation_steps = 1
        loss = self.trainer._compute_loss(self.trainer.model, inputs)
        loss.backward()
        return loss.item(), gradient_norm(self.trainer.model)


# --- measuring --------------------------------------------------------------------------------------------------------


def ways(folder: str, batches: Sequence[Sequence[str]], options: argparse.Namespace) -> dict[str, Callable[[], Step]]:
    """By way, a function that makes its step."""
    from trl_training import tuned

    fast = tuned(options)
    micro_batches = {"per_device_train_batch_size": 8, "steps_per_generation": None}
    micro_batches["gradient_accumulation_steps"] = len(batches[0]) * SAMPLES // 8
    return {
        "ours": lambda: Ours(folder, batches, options),
        "hand-written": lambda: HandWritten(folder, batches, options),
        NARROW: lambda: HandWritten(folder, batches, narrow(options)),
        DEFAULTS: lambda: Trl(folder, batches, options, **micro_batches),
        "TRL tuned, dynamic cache": lambda: Trl(folder, batches, options, **fast),
        "TRL tuned, static cache": lambda: Trl(folder, batches, options, **fast, cache_implementation="static"),
    }


def made_up_answers(count: int, tokens: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random answers [count, tokens], logprobs they might have been sampled with (nats), and advantages [count]."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, vocabulary, (count, tokens), generator=generator)
    given = torch.randn(count, generator=generator)
    level = -float(torch.tensor(vocabulary).log())
    return answers, level + 0.3 * torch.randn(answers.shape, generator=generator), given


def check_same_loss(steps: dict[str, Any], options: argparse.Namespace, vocabulary: int) -> None:
    """Raise AssertionError unless loss and gradient norm of made-up off-policy answers agree."""
    made = made_up_answers(options.prompts * SAMPLES, options.new_tokens, vocabulary)
    tensors = [tensor.to(options.device) for tensor in made]
    results = {label: step.loss_and_norm(*tensors) for label, step in steps.items()}
    for label, values in results.items():
        for ours, other in zip(results["ours"], values, strict=True):
            bound = TOLERANCE[torch.bfloat16] if label == DEFAULTS else options.tolerance
            if not abs(ours - other) <= bound * max(1.0, abs(ours)):
                raise AssertionError(f"{label} does not compute the loss and gradient norm of lossbook: {results}")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Check, measure, print the table, write it; returns its rows."""
    command_line = parser((__doc__ or "").splitlines()[0], DEFAULT_MODELS)
    command_line.add_argument("--prompts", type=int, default=2, help=f"prompts per step, of {SAMPLES} answers each")
    command_line.add_argument("--prompt-lengths", type=int, nargs="+", default=[64, 256], help="tokens")
    command_line.add_argument("--new-tokens", type=int, default=64, help="tokens per answer")
    options = parse(command_line, arguments, DEFAULT_MODELS)
    if options.quick:
        options.prompts, options.prompt_lengths, options.new_tokens = 1, [16], 4
    rows: list[dict[str, Any]] = []
    for model in options.model:
        with workloads.model_folder(model) as folder:
            for length in options.prompt_lengths:
                batches = batches_of(lambda seed, n=length: make_prompts(options.prompts, n, seed), options)
                steps = wanted(ways(folder, batches, options), options.ways)
                check_same_loss(steps, options, workloads.vocabulary(folder))
                tokens = options.prompts * SAMPLES * options.new_tokens
                about = {
                    "model": model,
                    "prompt": length,
                    "answers": options.prompts * SAMPLES,
                    "sampled tokens": tokens,
                }
                rows += compare(steps, options.rounds, tokens, about, tolerance=float("inf"))
    print(measuring.markdown(rows))
    measuring.write(options.name or "steps_grpo", rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
