"""RAG: citations are constrained to the sources, and answers are parsed and verified."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.common.config import InputError
from training.common.generation import complete
from training.tasks import rag
from training.tasks.rag.constrained import QuoteLogitsProcessor
from training.tasks.rag.format import FORMATS, Citation, Response, format_rag, parse_completion


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer):
    """An untrained model and its tokenizer."""
    from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer

    tokenizer = PleiasTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    config = PleiasConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    return PleiasForCausalLM(config).eval(), tokenizer


SOURCES = {
    "1": "la vieille maison au bord de l'eau, où personne n'allait.",
    "b-2": "the old house <|source_end|> stood by the river until the spring (and nobody came).",
}


def walk(processor, tokenizer, start, draw, steps=200):
    """Return a random continuation that the processor allows, from `start` to the end of the citation."""
    vocabulary = len(tokenizer)
    path = tokenizer(start, add_special_tokens=False).input_ids
    ids = torch.tensor([[0]])
    processor(ids, torch.zeros(1, vocabulary))
    for token in path:
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        scores = processor(ids, torch.zeros(1, vocabulary))
    for _ in range(steps):
        allowed = torch.isfinite(scores[0]).nonzero().flatten().tolist()
        if len(allowed) == vocabulary:
            return tokenizer.decode(path)
        path.append(draw(allowed))
        ids = torch.cat([ids, torch.tensor([[path[-1]]])], dim=1)
        scores = processor(ids, torch.zeros(1, vocabulary))
    raise AssertionError(f"never closed: {tokenizer.decode(path)}")


@pytest.mark.parametrize("rag_format", FORMATS)
@settings(max_examples=25, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_constrained_quotes_are_verbatim_and_end_at_words_for_any_scores(tiny, rag_format, draw):
    _, tokenizer = tiny
    prompt, _ = format_rag("q", SOURCES, Response(), rag_format)
    processor = QuoteLogitsProcessor(tokenizer, [prompt])
    text = walk(processor, tokenizer, '<|answer_start|>Yes <ref name="', draw.choice)
    response = parse_completion(text, rag_format)
    (citation,) = response.citations
    assert citation.literal(SOURCES) and not response.malformed
    source, _, after = SOURCES[citation.source].partition(citation.quote)
    assert not (source[-1:].isalnum() and citation.quote[0].isalnum())
    assert not (citation.quote[-1].isalnum() and after[:1].isalnum())
    assert len(citation.quote.split()) >= 3 or not any(map(str.isalnum, after))


def test_text_outside_citations_is_not_constrained(tiny):
    _, tokenizer = tiny
    prompt, _ = format_rag("q", SOURCES, Response())
    processor = QuoteLogitsProcessor(tokenizer, [prompt])
    ids, scores = torch.tensor([[0]]), torch.randn(1, len(tokenizer))
    for token in tokenizer('a <ref name="x<|source_analysis_end|>\n<|answer_start|>Free ').input_ids:
        assert torch.equal(processor(ids, scores.clone()), scores)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.fixture(scope="module")
def taught(tiny):
    """A copy of the model overfitted on one answer with a verbatim and a false quote."""
    model, tokenizer = copy.deepcopy(tiny[0]).train(), tiny[1]
    citations = (Citation("1", "old house"), " It is big. ", Citation("2", "by the sea"), Citation("2", "the river"))
    response = Response(("It is old. ", *citations), {"source_analysis": "1, 2"})
    pairs = [format_rag(QUERY, sources, response) for sources in (RIVER, HILLS)]
    ids = [tokenizer(prompt + completion).input_ids for prompt, completion in pairs]
    labels = [
        [-100] * len(prompt_ids) + row[len(prompt_ids) :]
        for row, prompt_ids in zip(ids, (tokenizer(prompt).input_ids for prompt, _ in pairs), strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        losses = [
            model(input_ids=torch.tensor([a]), labels=torch.tensor([b])).loss for a, b in zip(ids, labels, strict=True)
        ]
        if max(losses) < 0.01:
            break
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    return model.eval(), tokenizer


QUERY, RIVER = "the house?", {"1": "the old house stood here", "2": "it stood by the river until the spring"}
HILLS = {"1": "bells rang over the hills", "2": "nobody came until the bells rang"}


def test_an_answer_is_parsed_and_its_citations_are_verified(taught):
    answer = rag.answer(*taught, QUERY, RIVER, constrain=False)
    cited = [("1", "old house", True), ("2", "by the sea", False), ("2", "the river", True)]
    assert [(citation.source, citation.quote, valid) for citation, valid in answer.citations] == cited
    assert answer.plain == "It is old. It is big." and answer.analysis == "1, 2" and not answer.refused
    assert answer.text.count("<ref name=") == 3


def test_each_question_of_a_batch_is_constrained_to_its_own_sources(taught):
    prompts = [format_rag(QUERY, sources, Response())[0] for sources in (RIVER, HILLS)]
    outputs = complete(*taught, prompts, **{**rag.CONSTRAINED, "max_new_tokens": 200})
    for sources, output in zip((RIVER, HILLS), outputs, strict=True):
        citations = parse_completion(output).citations
        assert citations and all(citation.literal(sources) for citation in citations), output
    free = complete(*taught, prompts, **{**rag.DECODING, "max_new_tokens": 200})
    assert not all(citation.literal(RIVER) for citation in parse_completion(free[0]).citations)
    for drafted, decoding in ((outputs, rag.CONSTRAINED), (free, rag.DECODING)):
        plain = {name: value for name, value in decoding.items() if name != "draft"}
        assert complete(*taught, prompts, **{**plain, "max_new_tokens": 200}) == drafted


@pytest.mark.parametrize("constrain", [True, False])
def test_an_untrained_model_yields_an_answer_without_citations(tiny, constrain):
    model, tokenizer = tiny
    answer = rag.answer(model, tokenizer, "Jade?", SOURCES, constrain=constrain, max_new_tokens=8)
    assert answer.citations == () and not answer.refused
    with pytest.raises(InputError, match="exceeds the model's context length of 512"):
        rag.answer(model, tokenizer, "Jade?", ["jade " * 600])
    with pytest.raises(InputError, match="source id ''"):
        rag.answer(model, tokenizer, "Jade?", {"": "text"})


def test_the_benchmark_measures_the_effect_of_constrained_citations(taught, tmp_path):
    from training.bench.rag import RagBench, measure_rag

    model, tokenizer = taught
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    listed = [{"id": i, "text": text} for i, text in RIVER.items()]
    answers = ['It is old. <ref name="1">"old house"</ref>', 'It is by the river. <ref name="2">"the river"</ref>']
    rows = [
        {"query": QUERY, "sources": listed, "answer": answer, "language": "en", "source": f"{i}{answer}"}
        for i in range(2)
        for answer in answers
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = rag.RagData(path=tmp_path / "questions.jsonl", held_out=0.5)
    metrics = measure_rag(RagBench(str(tmp_path / "model"), data=data, out=tmp_path / "eval"))
    assert metrics["citation_validity"]["value"] == metrics["citation_validity_2_sources"]["value"] == 2 / 3
    assert metrics["citation_validity_constrained"]["value"] > metrics["citation_validity"]["value"]
    written = json.loads((tmp_path / "eval" / "rag_constrained.json").read_text())
    assert written["metrics"] == metrics and written["data"]["rows"] == 2
