"""A tiny model with a tokenizer of its own in runs/bpe, to be a teacher across tokenizers: `python examples/other_tokenizer.py`.

Byte pairs of Python's library are merged until there are 400 tokens; the chat template stays. Then, for instance,

    lossbook train sft --model runs/bpe --task spell_backward --all-weights --learning-rate 5e-3 --out runs/teacher
    lossbook train distill --teacher runs/teacher --model tiny --task spell_backward --loss gold --all-weights
"""

import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lossbook as lb

folder = Path("runs/bpe")
library = Path(sysconfig.get_paths()["stdlib"])
texts = [library.joinpath(name).read_text(encoding="utf-8") for name in ("argparse.py", "typing.py", "statistics.py")]
characters = lb.ServiceClient().create_training_client("tiny").get_tokenizer()
tokenizer = characters.train_new_from_iterator(texts, vocab_size=400)
tokenizer.chat_template = characters.chat_template

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.1, tie_word_embeddings=False, bos_token_id=None,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)  # fmt: skip
model = LlamaForCausalLM(config)
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)

text = "def spell_backward(word): return word[::-1]"
tokens = {name: len(one(text)["input_ids"]) for name, one in (("bytes", characters), ("byte pairs", tokenizer))}
print(f"{folder}: {len(tokenizer)} tokens; {text!r} is {tokens['bytes']} bytes, {tokens['byte pairs']} tokens")
