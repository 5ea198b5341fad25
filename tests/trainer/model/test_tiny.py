"""The models built in code: the same for a seed, harmless to the random state, and a tokenizer that loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.trainer.model.tiny import build_tiny_encoder, build_tiny_model, build_tiny_tokenizer

TOKENIZER = build_tiny_tokenizer()
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "héllo"},
    {"role": "assistant", "content": " hi\n"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "no"},
]


@pytest.mark.parametrize("build", [build_tiny_model, build_tiny_encoder])
def test_a_seed_fixes_the_weights_and_leaves_the_global_random_state_alone(build):
    before = torch.get_rng_state()
    first, second, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_decoder_starts_near_the_uniform_distribution():
    logits = build_tiny_model()(torch.arange(20)[None]).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert entropy.min() > 0.9 * torch.tensor(260.0).log()


def test_every_embedding_of_the_decoder_can_be_trained_also_that_of_padding():
    model = build_tiny_model().train()
    model(torch.tensor([[257, 1]])).logits.square().sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    assert model.model.embed_tokens.weight.grad[257].abs().sum() > 0


@given(text=st.text())
def test_decoding_what_was_encoded_gives_the_text_back(text: str):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_an_ordinary_token_is_its_byte():
    assert TOKENIZER.encode("aé") == [ord("a"), *"é".encode()]


def test_special_tokens_come_after_the_bytes_and_padding_is_not_the_end():
    assert TOKENIZER.encode("<|endoftext|><|pad|><|im_start|><|im_end|>") == [256, 257, 258, 259]
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (256, 257)
    assert len(TOKENIZER) == build_tiny_model().config.vocab_size == 260


def test_the_assistant_mask_covers_exactly_what_the_assistant_wrote_and_the_end_of_its_turn():
    rendered = TOKENIZER.apply_chat_template(
        CONVERSATION, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]  # type: ignore[call-overload,index]
    assert (
        TOKENIZER.decode([i for i, written in zip(ids, mask, strict=True) if written]) == " hi\n<|im_end|>no<|im_end|>"
    )


@given(turns=st.integers(1, len(CONVERSATION) - 1), content=st.text(max_size=20))
def test_a_shorter_conversation_renders_to_a_prefix_of_the_longer(turns: int, content: str):
    conversation = [*CONVERSATION[:turns], {"role": "user", "content": content}]
    shorter = TOKENIZER.apply_chat_template(CONVERSATION[:turns], tokenize=False)
    longer = TOKENIZER.apply_chat_template(conversation, tokenize=False)
    prompt = TOKENIZER.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert str(longer).startswith(str(shorter))
    assert prompt == f"{longer}<|im_start|>assistant\n"


def test_the_tokenizer_survives_being_saved_and_loaded(tmp_path: Path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a  . , 's <|im_end|>\r\n\x00 ü 你好"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.eos_token_id, loaded.pad_token_id) == (256, 257)


def test_the_encoder_reads_what_the_tokenizer_writes():
    states = build_tiny_encoder()(torch.tensor([TOKENIZER.encode("<|im_start|>hi<|im_end|>")])).last_hidden_state
    assert states.shape == (1, 4, 64)
