"""Prompts through a small random Gemma-2, whose tokens are words; no weights are fetched."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from longtake.errors import BadWeights, MissingPart
from longtake.model.sana_wm.text import INSTRUCTION, TOKENS, TextEncoder, load_text_encoder

transformers = pytest.importorskip("transformers", reason="longtake[generate] is not installed")
tokenizers = pytest.importorskip("tokenizers")

SIZES = {
    "model_type": "gemma2",
    "vocab_size": 130,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4096,
    "attn_logit_softcapping": 0.5,  # low enough to matter
    "bos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as a checkpoint has them."""
    folder = tmp_path_factory.mktemp("gemma")
    words = ["<pad>", "<eos>", "<bos>", "<unk>"]
    split = tokenizers.pre_tokenizers.Whitespace()
    for word, _ in split.pre_tokenize_str(INSTRUCTION + " a red house by the sea"):
        if word not in words:
            words.append(word)
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(SIZES))
    torch.manual_seed(0)
    net = transformers.Gemma2Model(transformers.Gemma2Config.from_dict(SIZES))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    save_file({f"model.{k}": v for k, v in net.state_dict().items()}, folder / "w.safetensors")
    return folder


def load(folder, dtype: torch.dtype = torch.float32, **files) -> TextEncoder:
    paths = {"weights": "w.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"} | files
    return load_text_encoder(**{k: folder / v for k, v in paths.items()}, device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def encoder(folder) -> TextEncoder:
    return load(folder)


def as_published(folder, text: str, budget: int):
    """All positions, padded on the right, through transformers alone: hidden states and mask."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", bos_token="<bos>"
    )
    net = transformers.Gemma2Model(transformers.Gemma2Config.from_dict(SIZES, attn_implementation="eager"))
    from safetensors.torch import load_file

    net.load_state_dict({k.removeprefix("model."): v for k, v in load_file(folder / "w.safetensors").items()})
    batch = tokenizer(
        [text], max_length=budget, padding="max_length", padding_side="right", truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = net(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    return out.hidden_states[-1], batch.attention_mask.bool(), len(tokenizer.encode(INSTRUCTION))


def test_the_instruction_is_the_published_one(shared_parity):
    published = json.loads((shared_parity / "sana_wm" / "chi_prompt.json").read_text())
    assert published["join"].join(published["lines"]) == INSTRUCTION


@pytest.mark.parametrize("words", [0, 1, 5, 150, 296, 297, 298, 299, 400])
def test_a_prompt_is_read_as_published(folder, encoder, words):
    prompt = " ".join((["a", "red", "house", "by", "the", "sea"] * 70)[:words])
    got = encoder.prompt(prompt)
    budget = len(encoder.instruction) + TOKENS - 2
    states, mask, tokens = as_published(folder, INSTRUCTION + prompt, budget)
    assert tokens == len(encoder.instruction)
    picked = [0, *range(-TOKENS + 1, 0)]
    assert got.states.shape == (1, 300, 16) and torch.equal(got.mask, mask[:, picked])
    torch.testing.assert_close(got.states[got.mask], states[:, picked][got.mask], rtol=0, atol=1e-5)
    assert not got.states[~got.mask].any()
    assert got.lost_tokens == max(0, words - (TOKENS - 2))


@pytest.mark.parametrize("words", [0, 3, 299, 320])
def test_a_negative_prompt_is_read_alone(folder, encoder, words):
    prompt = " ".join((["a", "red", "house"] * 120)[:words])
    got = encoder.negative(prompt)
    states, mask, _ = as_published(folder, prompt, TOKENS)
    assert torch.equal(got.mask, mask) and int(got.mask.sum()) == min(words + 1, 300)
    torch.testing.assert_close(got.states[got.mask], states[mask], rtol=0, atol=1e-5)
    assert got.lost_tokens == max(0, words + 1 - 300)


def test_what_follows_the_prompt_is_not_seen_and_the_instruction_is(encoder):
    longer, shorter = encoder.prompt("a red house"), encoder.prompt("a red")
    assert torch.allclose(longer.states[:, : int(shorter.mask.sum())], shorter.states[shorter.mask], atol=1e-6)
    alone = encoder.negative("a red")
    assert not torch.allclose(alone.states[0, 2], shorter.states[0, int(shorter.mask.sum()) - 1], atol=1e-3)


def test_types(folder):
    got = load(folder, torch.bfloat16)
    assert got.net.embed_tokens.weight.dtype == torch.bfloat16
    text = got.prompt("a house")
    assert text.states.dtype == torch.float32 and bool(text.states.isfinite().all())
    assert not any(t.is_meta for t in (*got.net.parameters(), *got.net.buffers()))


def test_no_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPart, match=r"pip install 'longtake\[generate\]'"):
        load(folder)


def test_files_of_something_else(folder, tmp_path):
    (folder / "llama.json").write_text(json.dumps(SIZES | {"model_type": "llama"}))
    with pytest.raises(BadWeights, match=r"llama\.json: no configuration of Gemma-2: .*'llama', not 'gemma2'"):
        load(folder, config="llama.json")
    with pytest.raises(BadWeights, match=r"config\.json: no tokenizer"):
        load(folder, tokenizer="config.json")
    (folder / "few.json").write_text(json.dumps(SIZES | {"vocab_size": 20}))
    with pytest.raises(BadWeights, match=r"tokenizer\.json has \d+ tokens, .*few\.json 20"):
        load(folder, config="few.json")
    (folder / "wide.json").write_text(json.dumps(SIZES | {"hidden_size": 24}))
    with pytest.raises(BadWeights, match=r"does not hold the weights of this Gemma2Model: .* has shape"):
        load(folder, config="wide.json")
