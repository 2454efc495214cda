"""Prompts as SANA-WM takes them: behind a fixed instruction, through Gemma-2, which transformers computes.

Source: SANA, arXiv 2410.10629, and SANA-WM's release configuration (Apache-2.0), which holds the instruction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import BadWeights, MissingPart
from .load import read_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = 300  # that the generator sees
INSTRUCTION = "\n".join(
    (
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for '
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
        "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
        "skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    )
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A prompt's hidden states."""

    states: Tensor  # [1, TOKENS, width] float32, 0 where there is no token
    mask: Tensor  # [1, TOKENS] True where there is one
    lost_tokens: int  # of the prompt's end, that had no room


class TextEncoder:
    """Gemma-2 and its tokens. Tokens are padded on the right: those that are there do not see the padding."""

    def __init__(self, net: Any, tokenizer: Tokenizer) -> None:
        self.net = net  # transformers' Gemma2Model
        self.tokenizer = tokenizer
        self.instruction = self._ids(INSTRUCTION)

    def prompt(self, text: str) -> Text:
        """What to show: read behind the instruction, of which the generator sees the first token and the last.

        The instruction takes len(self.instruction) tokens; with 298 behind it a prompt is full.
        """
        ids, room = self._ids(INSTRUCTION + text), len(self.instruction) + TOKENS - 2
        states = self._states(ids[:room])
        first = room - TOKENS + 1  # of the last that are seen, among `room`
        return _padded(torch.cat([states[:1], states[first:]]), max(0, len(ids) - room))

    def negative(self, text: str) -> Text:
        """What to lead away from: read alone."""
        ids = self._ids(text)
        return _padded(self._states(ids[:TOKENS]), max(0, len(ids) - TOKENS))

    def _ids(self, text: str) -> list[int]:
        return [self.net.config.bos_token_id, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def _states(self, ids: list[int]) -> Tensor:
        """[len(ids), width] after the last norm."""
        tokens = torch.tensor([ids], device=self.net.embed_tokens.weight.device)
        with torch.inference_mode():
            out = self.net(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        return out.last_hidden_state[0].float()


def _padded(states: Tensor, lost_tokens: int) -> Text:
    count, width = states.shape
    out = states.new_zeros(1, TOKENS, width)
    out[0, :count] = states
    mask = torch.arange(TOKENS, device=states.device)[None] < count
    return Text(states=out, mask=mask, lost_tokens=lost_tokens)


def load_text_encoder(
    weights: Path, config: Path, tokenizer: Path, *, device: torch.device | str, dtype: torch.dtype
) -> TextEncoder:
    """Gemma-2 with a checkpoint's weights, for inference.

    Args:
        weights: a safetensors file, or the index beside the parts of one.
        config: the checkpoint's config.json.
        tokenizer: its tokenizer.json.

    Raises:
        MissingPart: transformers is not installed.
        BadWeights: a file cannot be read, is damaged, or belongs to another network.
    """
    try:
        from tokenizers import Tokenizer
        from transformers import Gemma2Config, Gemma2Model
    except ImportError as error:
        raise MissingPart(f"prompts are read by transformers ({error}): pip install 'longtake[generate]'") from error
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
        if tree["model_type"] != "gemma2":
            raise ValueError(f"model_type is {tree['model_type']!r}, not 'gemma2'")
        sizes = Gemma2Config.from_dict(tree, attn_implementation="eager")  # others leave out the logits' soft cap
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadWeights(f"{config}: no configuration of Gemma-2: {error!r}") from error
    try:
        tokens = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # what the library raises is no narrower
        raise BadWeights(f"{tokenizer}: no tokenizer: {error}") from error
    tokens.no_padding()
    tokens.no_truncation()
    if tokens.get_vocab_size() > sizes.vocab_size:
        raise BadWeights(f"{tokenizer} has {tokens.get_vocab_size()} tokens, {config} {sizes.vocab_size}")

    with torch.device("meta"):
        net = Gemma2Model(sizes)
    stem = Gemma2Model(Gemma2Config.from_dict({**tree, "num_hidden_layers": 0, "layer_types": [], "vocab_size": 1}))
    for name, buffer in stem.named_buffers():  # those that no checkpoint holds
        owner, _, last = name.rpartition(".")
        net.get_submodule(owner).register_buffer(last, buffer.to(device), persistent=False)
    prefix = {"model.": ""}
    return TextEncoder(
        read_weights(net, weights, device=device, dtype=dtype, renamed=prefix, left_out=("lm_head.weight",)), tokens
    )
