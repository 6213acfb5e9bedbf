"""Bytes of the tokens of a byte-level vocabulary, with which logits processors compare tokens and text."""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode


@lru_cache(maxsize=2)
def token_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[int, bytes], dict[bytes, int], int]:
    """Return id -> bytes of the ordinary tokens of a byte-level vocabulary, the inverse, and the longest length."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    encoded = {
        i: bytes(byte_of[character] for character in token)
        for token, i in tokenizer.get_vocab().items()
        if i not in special and all(character in byte_of for character in token)
    }
    return encoded, {text: i for i, text in encoded.items()}, max(map(len, encoded.values()), default=0)


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the vocabulary has a token for every byte, as the logits processors require."""
    return all(bytes([byte]) in token_bytes(tokenizer)[1] for byte in range(256))
