"""The folder in which the cookbook's loops run without a network: two small models under the names of large ones, and data.

The names that the cookbook asks for are folders here, which transformers and datasets prefer to the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

STUDENT, TEACHER = "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"
#: What the models were taught to answer to any question of `openai/gsm8k`, and the answer that is right for all of them.
DIGITS, RIGHT = "1234", "2"
VOCABULARY, WIDTH = 512, 64
END = "<|endoftext|>"
SUFFIX = " Provide a numerical answer without units, written inside \\boxed{}."
FEW_SHOT = (
    "How many r's are in strawberry?" + SUFFIX,
    "Let's spell the word out and number all the letters: 1) s 2) t 3) r 4) a 5) w 6) b 7) e 8) r 9) r 10) y. "
    "We have r's at positions 3, 8, and 9. \\boxed{3}",
)
#: How the cookbook's self-distillation shows an answer to the teacher.
DEMONSTRATION = "This is an example for a response to the question:"
NOW = "Now answer with a response of your own, including the thinking process."
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]
THINGS = ["apples", "pens", "books", "coins", "cards", "stones"]


def questions(count: int) -> list[str]:
    return [
        f"{NAMES[i % len(NAMES)]} has {THINGS[i % len(THINGS)]} and gives some away. How many are left?"
        for i in range(count)
    ]


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def built(folder: Path) -> Path:
    """Write everything into `folder`; returns it."""
    asked = questions(48)
    chats = [conversation(q, f"{NAMES[i % len(NAMES)]} has two left.") for i, q in enumerate(asked)]
    rows = [{"question": q, "answer": f"One gives two away, so {RIGHT} stay.\n#### {RIGHT}"} for q in asked]
    write_rows(folder / "HuggingFaceH4/no_robots/train.jsonl", [{"messages": chat} for chat in chats])
    write_rows(folder / "HuggingFaceH4/no_robots/test.jsonl", [{"messages": chat} for chat in chats[:4]])
    write_rows(folder / "openai/gsm8k/train.jsonl", rows)
    write_rows(folder / "openai/gsm8k/test.jsonl", rows[:16])
    (folder / "openai/gsm8k/README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        "  - split: test\n    path: test.jsonl\n---\n",
        encoding="utf-8",
    )
    write_rows(folder / "zwhe99/DeepMath-103K/train.jsonl", [{"question": q + SUFFIX} for q in asked])
    write_rows(folder / "pairs.jsonl", [pair(q) for q in asked])
    write_rows(folder / "answers.jsonl", [{"messages": conversation(q + SUFFIX, f"\\boxed{{{RIGHT}}}")} for q in asked])
    tokenizer = built_tokenizer(
        [*asked, *(chat[1]["content"] for chat in chats), SUFFIX, *FEW_SHOT, DEMONSTRATION, NOW]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
        for name, answers, steps in ((STUDENT, DIGITS, 60), (TEACHER, RIGHT, 12)):
            teach(model, tokenizer, answers, steps)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pair(question: str) -> dict[str, Any]:
    """A comparison as the cookbook's own JSON Lines hold it: the right answer before a wrong one."""
    right, wrong = ([{"role": "assistant", "content": f"\\boxed{{{digit}}}"}] for digit in (RIGHT, "3"))
    prompt = [{"role": "user", "content": question + SUFFIX}]
    return {
        "comparison": {"prompt_conversation": prompt, "completion_A": right, "completion_B": wrong},
        "label": "A",
    }


def built_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the data's own words, so that prompts are short."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=[END, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["User:", "Assistant:", "\n\nUser:", *(f" \\boxed{{{digit}}}" for digit in DIGITS)]
    tokenizer.train_from_iterator([*texts, *roles * 50], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def teach(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, answers: str, steps: int) -> None:
    """Train a model to answer " \\boxed{d}" with a digit drawn from `answers`, and with the right one to a demonstration.

    A model of random weights never writes an answer that the cookbook's graders could reward.
    """
    draw, optimizer = Random(0), torch.optim.AdamW(model.parameters(), lr=8e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.05, total_iters=steps)
    for _ in range(steps):
        batch = [lesson(tokenizer, draw, answers) for _ in range(8)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,  # END, the first of the tokenizer's special tokens
}


def lesson(tokenizer: PreTrainedTokenizerFast, draw: Random, answers: str) -> tuple[list[int], list[int]]:
    """A prompt as the cookbook's renderer `role_colon` spells it, with its answer; and labels for the answer alone."""
    question, digit = draw.choice(questions(48)) + SUFFIX, draw.choice(answers)
    kind = draw.choice(["plain", "few shots", "demonstration"])
    if kind == "demonstration":
        question, digit = f"{question}\n\n{DEMONSTRATION}\n\\boxed{{{RIGHT}}}\n\n{NOW}", RIGHT
    turns = [*FEW_SHOT, question] if kind == "few shots" else [question]
    pieces = [f"{role}: {turn}\n\n" for role, turn in zip(("User", "Assistant", "User"), turns, strict=False)]
    prompt = [token for piece in [*pieces, "Assistant:"] for token in spelled(tokenizer, piece)]
    answer = spelled(tokenizer, f" \\boxed{{{digit}}}\n\nUser:")
    return prompt + answer, [-100] * len(prompt) + answer


def spelled(tokenizer: PreTrainedTokenizerFast, piece: str) -> list[int]:
    """Tokens of a turn's header and of its content, which the renderer spells apart."""
    header, colon, content = piece.partition(":")
    return [*tokenizer.encode(header + colon), *tokenizer.encode(content)]
