"""The table of all commands: a row for each, in the order of `lossbook --help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The headings of `lossbook --help`, in its order.
Section = Literal["Start", "Train", "Look at runs", "Losses", "Data", "Elsewhere"]


@dataclass(frozen=True)
class Command:
    """A command: its summary, and the function of a module of `cookbook` that runs it.

    config: the name of the module's pydantic model whose fields are the flags and which the function takes. Without one
    the function's parameters are the flags.
    words: the function takes the words of the command line as they are, and returns what is to be called.
    section: the heading under which `lossbook --help` lists it; examples: command lines on top of its own help.
    """

    summary: str
    module: str
    function: str = "main"
    config: str | None = None
    words: bool = False
    section: Section = "Elsewhere"
    examples: tuple[str, ...] = ()


COMMANDS: dict[tuple[str, ...], Command] = {
    ("quickstart",): Command(
        "fine-tune a small model with a built-in and a custom loss",
        "quickstart",
        config="quickstart.QuickstartConfig",
        section="Start",
        examples=("lossbook quickstart", "lossbook quickstart --model tiny --out runs/first"),
    ),
    ("doctor",): Command(
        "check this machine, its packages, and a training step",
        "doctor.environment",
        section="Start",
        examples=("lossbook doctor",),
    ),
    ("train", "sft"): Command(
        "supervised fine-tuning with any loss",
        "sft",
        config="sft.SFTConfig",
        section="Train",
        examples=(
            "lossbook train sft --data train.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct",
            "lossbook train sft --config examples/sft.toml --steps 500 --resume",
        ),
    ),
    ("train", "dpo"): Command(
        "preference learning with any loss over pairs or labels",
        "dpo",
        config="preferences.DPOConfig",
        section="Train",
        examples=(
            "lossbook train dpo --data pairs.jsonl --start-from runs/sft",
            "lossbook train dpo --config examples/dpo.toml --loss simpo",
        ),
    ),
    ("train", "reward"): Command(
        "a reward model from preference pairs",
        "reward",
        config="preferences.RewardConfig",
        section="Train",
        examples=(
            "lossbook train reward --data pairs.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct",
            "lossbook train reward --config examples/reward.toml",
        ),
    ),
    ("train", "rl"): Command(
        "reinforcement learning with any policy loss",
        "rl",
        config="rl.RLConfig",
        section="Train",
        examples=(
            "lossbook train rl --task letter_counting --loss dapo",
            "lossbook train rl --data math.jsonl --reward my_rewards:short --kl-coefficient 0.001",
        ),
    ),
    ("train", "distill"): Command(
        "distillation from a teacher on given or sampled answers",
        "distill",
        config="distill.DistillConfig",
        section="Train",
        examples=(
            "lossbook train distill --teacher runs/sft --task letter_counting",
            "lossbook train distill --config examples/distill.toml --steps 500",
        ),
    ),
    ("train", "embed"): Command(
        "embeddings with in-batch and hard negatives and any embedding loss",
        "embed",
        config="embed.EmbedConfig",
        section="Train",
        examples=(
            "lossbook train embed --data pairs.jsonl --held-out 200",
            "lossbook train embed --data scored.jsonl --loss cosent --no-all-weights --rank 8",
        ),
    ),
    ("train", "rerank"): Command(
        "a reranker of a query's candidates with any ranking loss",
        "rerank",
        config="embed.RerankConfig",
        section="Train",
        examples=(
            "lossbook train rerank --data triplets.jsonl --held-out 200 --random-negatives 4",
            "lossbook train rerank --data graded.jsonl --loss lambda_loss --loss-config weighting ndcg2",
        ),
    ),
    ("runs", "list"): Command(
        "list the runs in a folder: state, steps, last numbers, loss, model, date",
        "commands.compare",
        "list_runs",
        section="Look at runs",
        examples=("lossbook runs list", "lossbook runs list runs --sort held_out_nll"),
    ),
    ("runs", "compare"): Command(
        "compare the final numbers of runs: means and intervals over seeds, paired differences",
        "commands.compare",
        "compare_runs",
        section="Look at runs",
        examples=("lossbook runs compare runs/dpo runs/simpo", "lossbook runs compare runs/sweep --markdown"),
    ),
    ("runs", "plot"): Command(
        "plot the curves of one or several runs in one picture",
        "commands.runs",
        "plot",
        section="Look at runs",
        examples=("lossbook runs plot runs/sft runs/other --keys loss held_out_nll",),
    ),
    ("runs", "report"): Command(
        "write an HTML page on runs: curves, diagnoses, the loss, its gradient at each token",
        "commands.runs",
        "report",
        section="Look at runs",
        examples=("lossbook runs report runs/sft",),
    ),
    ("sample",): Command(
        "answer prompts with what was trained, or with a model as it is",
        "commands.sampling",
        "sample",
        section="Look at runs",
        examples=('lossbook sample runs/sft "What is 2 + 3?"', "lossbook sample runs/sft --file prompts.jsonl --json"),
    ),
    ("chat",): Command(
        "talk to what was trained, or to a model as it is",
        "commands.sampling",
        "chat",
        section="Look at runs",
        examples=("lossbook chat runs/sft", 'lossbook chat runs/sft --system "Answer in French."'),
    ),
    ("export",): Command(
        "write trained weights for peft or transformers, and check them",
        "export.command",
        section="Look at runs",
        examples=("lossbook export runs/sft exported",),
    ),
    ("losses", "list"): Command(
        "list all registered losses by family",
        "commands.losses",
        "list_all_losses",
        section="Losses",
        examples=("lossbook losses list",),
    ),
    ("losses", "show"): Command(
        "show a loss's card (formula, inputs, settings, metrics, source) and its curve",
        "commands.losses",
        "show_loss",
        section="Losses",
        examples=("lossbook losses show dapo",),
    ),
    ("losses", "diff"): Command(
        "show how two losses differ, and their values on the same data",
        "commands.losses",
        "diff_losses",
        section="Losses",
        examples=("lossbook losses diff grpo dapo",),
    ),
    ("losses", "check"): Command(
        "test a loss against the laws that all losses obey",
        "commands.losses",
        "check_losses",
        section="Losses",
        examples=("lossbook losses check my_losses:focal",),
    ),
    ("losses", "new"): Command(
        "write a loss of your own and its test, to edit",
        "commands.new_loss",
        "new_loss",
        section="Losses",
        examples=("lossbook losses new my_loss",),
    ),
    ("new", "loss"): Command(
        "the same as `losses new`",
        "commands.new_loss",
        "new_loss",
        section="Losses",
        examples=("lossbook new loss my_loss",),
    ),
    ("data", "show"): Command(
        "show rows of a data file, tokens coloured by weight; as HTML also by loss and gradient",
        "commands.data",
        "show_data",
        section="Data",
        examples=("lossbook data show train.jsonl",),
    ),
    ("data", "report"): Command(
        "report on the rows of a data file: lengths, labels, problems, repetitions",
        "commands.data",
        "report_data",
        section="Data",
        examples=("lossbook data report train.jsonl",),
    ),
    ("tinker",): Command(
        "run a program written for Tinker on this machine: SCRIPT.py ARGS, or -m MODULE ARGS",
        "commands.tinker",
        "program",
        words=True,
    ),
    ("serve",): Command(
        "serve Tinker's protocol over HTTP on the models of this machine",
        "commands.serve",
        "serve",
        config="serve.ServeConfig",
        examples=(
            "lossbook serve",
            "lossbook serve --models Qwen/Qwen3-8B /models/qwen3-8b --root runs/serve",
            "lossbook serve --host 0.0.0.0 --keys-file keys.txt",
        ),
    ),
    ("conform",): Command(
        "check the promises of a server of Tinker's protocol, through the official SDK",
        "commands.conform",
        "conform",
        examples=(
            "lossbook conform --base-url http://127.0.0.1:8000",
            'lossbook conform --in-process --only "gradient.*" --json',
        ),
    ),
    ("doctor", "model"): Command(
        "check a model against its own logits, and say how it is run",
        "doctor.model",
        examples=("lossbook doctor model HuggingFaceTB/SmolLM2-135M",),
    ),
    ("doctor", "plan"): Command(
        "work out memory, communication and efficiency of training on many GPUs",
        "doctor.plan.command",
        examples=("lossbook doctor plan --model llama-8b --gpus 8 --all-weights",),
    ),
    ("doctor", "parity"): Command(
        "check that sampler and trainer give the same logprobs",
        "doctor.parity",
        examples=("lossbook doctor parity --model tiny", "lossbook doctor parity --run runs/rl"),
    ),
}
