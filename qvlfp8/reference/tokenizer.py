"""The tiny model's tokenizer: one token a byte, and Qwen2.5-VL's special tokens.

A byte-level BPE without merges, in the files that every transformers version reads. Real
vocabularies are learned; here text only has to go in and come out unharmed.
"""

from __future__ import annotations

from typing import Any

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids in the published models (151643 to 151656)."""

VOCABULARY_SIZE = 272
"""Rows of the embedding: 256 bytes and 14 special tokens, padded to a multiple of 16."""

MERGES = "#version: 0.2\n"
"""merges.txt without a merge; the first line is the format's header."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] in ['image', 'image_url'] %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] in ['video', 'video_url'] %}
{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""ChatML; unlike the published template it adds no system message of its own."""


def byte_symbols() -> tuple[str, ...]:
    """Give the printable character that stands for each byte, in the order of GPT-2's vocabulary.

    Printable Latin-1 stands for itself and comes first; the other 68 bytes get the characters from
    U+0100 on (https://github.com/openai/gpt-2/blob/master/src/encoder.py, ``bytes_to_unicode``).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return tuple(map(chr, printable)) + tuple(chr(0x100 + n) for n in range(256 - len(printable)))


BYTE_IDS = {symbol: number for number, symbol in enumerate(byte_symbols())}
"""vocab.json: the 256 byte symbols."""

TOKEN_IDS = {token: 256 + number for number, token in enumerate(SPECIAL_TOKENS)}
"""The special tokens' ids."""


def tokenizer_json() -> dict[str, Any]:
    """Make tokenizer.json, with the stages that the published one has."""
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False,
    }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_} | _added(token) for token, id_ in TOKEN_IDS.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": BYTE_IDS,
            "merges": [],
        },
    }


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """Make tokenizer_config.json; ``max_length`` in tokens."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id_): _added(token) for token, id_ in TOKEN_IDS.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _added(token: str) -> dict[str, Any]:
    return {
        "content": token, "lstrip": False, "normalized": False, "rstrip": False,
        "single_word": False, "special": True,
    }  # fmt: skip
