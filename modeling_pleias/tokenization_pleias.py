# Copyright 2026 the modeling-pleias authors.
#
# Licensed under the Apache License, Version 2.0: see LICENSE.
"""The Pleias tokenizer: lossless byte-level BPE, built in one place."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import TokenizersBackend

# Text is split into these pieces before merging; no merge crosses them. The pattern is llama.cpp's "llama-bpe", with
# the contractions written out: under (?i:...) an 's would also match the long s of old prints. Alternatives in order:
# English contractions; letters with at most one leading character that is neither letter, digit nor line end; up to
# three digits; other symbols with an optional leading space, up to the line end; line ends; spaces.
PATTERN = (
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# Ids 0 to 3, as in the original's vocabulary.
BASE_TOKENS = ("[UNK]", "<|begin_of_text|>", "<|end_of_text|>", "[PAD]")

# The last 64 tokens of every vocabulary, in this order: the task tokens of the published Pleias models (Pico and Nano
# 0.1, and RAG 2025), layout markers, languages, and reserved tokens. Text does not encode to them, except their names.
DOCUMENT_TOKENS = {
    "<|text_start|>": "opens the text that a task is about",
    "<|text_end|>": "closes it",
    "<|ocr_correction_start|>": "opens the corrected text",
    "<|ocr_correction_end|>": "closes it",
    "<|translation_start|>": "opens a translation",
    "<|translation_end|>": "closes it",
    "<|back_translation_start|>": "opens a translation back into the language of the text",
    "<|back_translation_end|>": "closes it",
    "<|query_start|>": "opens the user's question",
    "<|query_end|>": "closes it",
    "<|query_analysis_start|>": "opens the reasoning on what is asked and in which language",
    "<|query_analysis_end|>": "closes it",
    "<|query_report_start|>": "opens the verdict on the question: answerable, trivial, reformulated, unclear, refused",
    "<|query_report_end|>": "closes it",
    "<|source_start|>": "opens one retrieved source",
    "<|source_end|>": "closes it",
    "<|source_id|>": "stands before a source's number, in the source and in a citation (RAG 2025)",
    "<|source_id_start|>": "opens a source's name (RAG 0.1)",
    "<|source_id_end|>": "closes it",
    "<|source_analysis_start|>": "opens the reasoning on the sources",
    "<|source_analysis_end|>": "closes it",
    "<|source_report_start|>": "opens the verdict on the sources: extensive, basic, incomplete, infeasible",
    "<|source_report_end|>": "closes it",
    "<|source_interpretation_start|>": "opens a reading of one source",
    "<|source_interpretation_end|>": "closes it",
    "<|language_start|>": "opens the name of the language to answer in",
    "<|language_end|>": "closes it",
    "<|draft_start|>": "opens the draft of an answer",
    "<|draft_end|>": "closes it",
    "<|answer_start|>": "opens the answer",
    "<|answer_end|>": "closes it",
    "<|im_start|>": "opens a turn of a conversation",
    "<|im_end|>": "closes it",
    "<|tool_list_start|>": "opens the list of tools that may be called",
    "<|tool_list_end|>": "closes it",
    "<|tool_call_start|>": "opens a call of a tool",
    "<|tool_call_end|>": "closes it",
    "<|json_scheme_start|>": "opens the JSON schema that an answer follows",
    "<|json_scheme_end|>": "closes it",
    "<|page_break|>": "a new page begins",
    "<|heading_start|>": "opens a heading",
    "<|heading_end|>": "closes it",
    "<|table_start|>": "opens a table",
    "<|table_end|>": "closes it",
    "<|footnote_start|>": "opens a note",
    "<|footnote_end|>": "closes it",
    "<|en|>": "English",
    "<|fr|>": "French",
    "<|es|>": "Spanish",
    "<|de|>": "German",
    "<|it|>": "Italian",
    "<|nl|>": "Dutch",
    "<|la|>": "Latin",
    "<|pt|>": "Portuguese",
    **{f"<|reserved_{i}|>": "free for later use" for i in range(10)},
}


class PleiasTokenizer(TokenizersBackend):
    """Byte-level BPE without normalisation: `decode(encode(text)) == text` for every string.

    `<|begin_of_text|>` is added before each text (`add_bos_token`); programs that end documents append
    `<|end_of_text|>` themselves. Special tokens written out in a text are encoded as special tokens, as everywhere in
    transformers; pass `split_special_tokens=True` for text from others.

    The trained vocabulary of 65,536 tokens is in the package: `PleiasTokenizer.from_pretrained(folder)` with
    `folder = Path(modeling_pleias.__file__).parent / "tokenizer"`. Its REPORT.md measures it on text.

    Args:
        vocab: Token to id, in byte-level (GPT-2) encoding, `BASE_TOKENS` first and `DOCUMENT_TOKENS` last. Default:
            these and the bytes between them.
        merges: Pairs of tokens, in order of merging.
        add_bos_token: Whether `bos_token` is added before each text. Default: as tokenizer.json specifies, or True if
            the tokenizer is not loaded from one.
        add_eos_token: Whether `eos_token` is added after each text. Default: as tokenizer.json specifies, or False.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: list[tuple[str, str]] | None = None,
        *,
        unk_token: str | AddedToken = BASE_TOKENS[0],
        bos_token: str | AddedToken = BASE_TOKENS[1],
        eos_token: str | AddedToken = BASE_TOKENS[2],
        pad_token: str | AddedToken = BASE_TOKENS[3],
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        model_max_length: int = 2048,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
        **kwargs,
    ):
        if vocab is None:
            specials = [str(token) for token in (unk_token, bos_token, eos_token, pad_token)]
            tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *DOCUMENT_TOKENS]
            vocab = {token: i for i, token in enumerate(tokens)}
        kwargs.setdefault("extra_special_tokens", [token for token in DOCUMENT_TOKENS if token in vocab])
        # ignore_merges: a piece that is in the vocabulary becomes that token, as in llama.cpp's llama-bpe.
        self._tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges or [], ignore_merges=True))
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            model_max_length=model_max_length,
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )
        # transformers saves neither setting: the post-processor in tokenizer.json states them.
        saved = "post_processor" in kwargs or kwargs.get("tokenizer_file") or kwargs.get("tokenizer_object")
        adds_before, adds_after = self._saved_additions() if saved else (True, False)
        self._add_bos_token = adds_before if add_bos_token is None else add_bos_token
        self._add_eos_token = adds_after if add_eos_token is None else add_eos_token
        self.init_kwargs |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        self.update_post_processor()

    def _saved_additions(self) -> tuple[bool, bool]:
        """Return whether the post-processor adds tokens before a text, and after it."""
        text = Tokenizer(WordLevel({"a": 0}, unk_token="a")).encode("a")
        special = self._tokenizer.post_processor.process(text).special_tokens_mask
        position = special.index(0)
        return position > 0, position < len(special) - 1

    def train_new_from_iterator(self, text_iterator, vocab_size: int, *args, **kwargs) -> "PleiasTokenizer":
        """Train as transformers does, with the document tokens at the end of the vocabulary.

        Args:
            text_iterator: Texts, or batches of texts.
            vocab_size: Size of the vocabulary, with special tokens.
            args, kwargs: Arguments of `TokenizersBackend.train_new_from_iterator`.
        """
        trained = super().train_new_from_iterator(text_iterator, vocab_size, *args, **kwargs)
        model = json.loads(trained.backend_tokenizer.to_str())["model"]
        last = set(trained.extra_special_tokens)
        tokens = sorted(model["vocab"], key=lambda token: (token in last, model["vocab"][token]))
        init_kwargs = {key: value for key, value in trained.init_kwargs.items() if key not in ("vocab", "merges")}
        init_kwargs |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        return type(self)(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in model["merges"]],
            **init_kwargs,
        )


__all__ = ["DOCUMENT_TOKENS", "PleiasTokenizer"]
