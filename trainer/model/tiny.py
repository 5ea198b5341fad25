"""Tiny models built in code, for tests and first steps: no download, and they learn in seconds.

`"tiny"` is a two-layer Llama, `"tiny-encoder"` a two-layer BERT, with one byte tokenizer for both. They take the same
code paths as real models: transformers modules, chat templates, peft.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

#: Ids 0 to 255 are the bytes themselves; these follow, in this order.
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
CONTEXT = 4096
HIDDEN, LAYERS, HEADS = 64, 2, 4

#: ChatML. The markers tell transformers which tokens an assistant wrote: its text and the token that ends its turn.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A two-layer Llama (hidden 64, 4 query and 2 key-value heads, context 4096, untied head) of random weights.

    Equal seeds give equal weights; the global random state is left as it was. Generation stops at
    `<|endoftext|>` and at `<|im_end|>`.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end, pad, _, turn_end = range(256, VOCABULARY)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,  # large for a width of 64: a frozen head can then tell tokens apart, so LoRA learns fast
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with seeded(seed):
        model = LlamaForCausalLM(config)
    # `padding_idx` would keep the padding token's embedding from ever being trained; padding is masked instead.
    model.model.embed_tokens.padding_idx = None  # type: ignore[assignment]
    model.generation_config = GenerationConfig(eos_token_id=[end, turn_end], pad_token_id=pad)
    return model.eval()


def build_tiny_encoder(seed: int = 0, *, masked_lm_head: bool = False) -> BertModel | BertForMaskedLM:
    """A two-layer BERT (hidden 64, context 512, no pooler, no dropout) of random weights, for embedding losses.

    masked_lm_head: the same encoder in a masked language model, whose head is random too, besides the tied embeddings.
    """
    from transformers import BertConfig, BertForMaskedLM, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>") + 256,
    )
    with seeded(seed):
        model = BertModel(config, add_pooling_layer=False)
    if not masked_lm_head:
        return model.eval()
    with seeded(seed):
        whole = BertForMaskedLM(config)
    whole.bert = model
    whole.tie_weights()
    return whole.eval()


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids 0 to 255 are UTF-8 bytes, with ChatML's special tokens after them.

    Any text survives `decode(encode(text))`. The chat template carries `{% generation %}` markers, so
    `apply_chat_template(..., return_assistant_tokens_mask=True)` is exact.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    backend = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random state inside and restore it afterwards; `torch.manual_seed` would reseed GPUs too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte (GPT-2's table, which `tokenizers` uses).

    Printable Latin-1 bytes stand for themselves; the other 68 take the characters from U+0100 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
