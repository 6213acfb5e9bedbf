"""Decoding settings of RAG, and `answer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...common.config import InputError
from ...common.drafting import PromptDraft
from ...common.generation import complete
from .constrained import QuoteLogitsProcessor
from .format import STOP, Citation, Format, format_prompt, parse_completion
from .metrics import refuses

DECODING = {"max_new_tokens": 256, "stop": STOP, "repetition_penalty": 1.0, "draft": PromptDraft}
# With citations constrained to the sources: for users of a small model. Metrics are reported without constraint.
CONSTRAINED = {**DECODING, "logits_processor": QuoteLogitsProcessor}


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question with sources.

    Args:
        text: Answer with citations, in RAG 0.1 format.
        plain: Answer without citations.
        citations: Citations, each with whether its quote occurs verbatim in its source.
        refused: The model states that the sources do not answer the question.
        analysis: The model's analysis of the sources, generated before the answer.
    """

    text: str
    plain: str
    citations: tuple[tuple[Citation, bool], ...]
    refused: bool
    analysis: str


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    query: str,
    sources: Sequence[str] | Mapping[str, str],
    *,
    rag_format: Format = "rag-0.1",
    constrain: bool = True,
    max_new_tokens: int = DECODING["max_new_tokens"],
) -> Answer:
    """Answer a question from sources, with citations.

    Args:
        sources: Texts, which are assigned the ids 1, 2, ...; or id -> text.
        rag_format: Format that the model was fine-tuned for.
        constrain: Constrain citations to the sources (training.tasks.rag.constrained), so that every quote is
            verbatim.
        max_new_tokens: Maximum tokens of the completion.

    Raises:
        InputError: If an id is invalid, the tokenizer lacks the task's tokens, or question, sources and answer exceed
            the model's context length.
    """
    texts = dict(sources) if isinstance(sources, Mapping) else {str(n): text for n, text in enumerate(sources, 1)}
    if STOP not in tokenizer.get_vocab():
        raise InputError(f"the tokenizer has no {STOP}: use a model that was fine-tuned with --config finetune_rag.")
    try:
        prompt = format_prompt(query, texts, rag_format)
    except ValueError as error:
        raise InputError(str(error)) from None
    length, context = len(tokenizer(prompt).input_ids), model.config.max_position_embeddings
    if length + max_new_tokens > context:
        raise InputError(
            f"question and sources have {length} tokens, which with an answer of {max_new_tokens} exceeds the model's "
            f"context length of {context}: use fewer or shorter sources."
        )
    decoding = {**(CONSTRAINED if constrain else DECODING), "max_new_tokens": max_new_tokens}
    response = parse_completion(complete(model, tokenizer, [prompt], **decoding)[0], rag_format)
    return Answer(
        text=response.text,
        plain=response.plain,
        citations=tuple((citation, citation.literal(texts)) for citation in response.citations),
        refused=refuses(response),
        analysis=response.blocks["source_analysis"],
    )
