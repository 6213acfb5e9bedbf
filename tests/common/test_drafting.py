"""Decoding with drafts gives the output of plain greedy decoding, in fewer passes."""

import random
from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.common import drafting
from training.common.drafting import InputDraft, PromptDraft, accepts_drafts
from training.common.generation import complete
from training.tasks import ocr
from training.tasks.ocr.edit_penalty import edit_penalty_processor
from training.tasks.ocr.format import STOP, input_of
from training.tasks.ocr.inference import input_draft

WORDS = "the old house stood by the river and nobody came; où personne n'allait \u017fai\u017fon € 1848".split()
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return PleiasTokenizer.from_pretrained(tiny_tokenizer)


def random_model(tokenizer, architecture: str, seed: int):
    """Return a model with random weights, and a list to which it appends the number of tokens of each pass."""
    torch.manual_seed(seed)
    size = len(tokenizer)
    if architecture == "pleias":
        model = PleiasForCausalLM(PleiasConfig(vocab_size=size, num_key_value_heads=2, **SHAPE))
    elif architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2))
    elif architecture == "mistral":
        model = MistralForCausalLM(MistralConfig(vocab_size=size, num_key_value_heads=2, sliding_window=16, **SHAPE))
    else:
        model = MambaForCausalLM(MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + seed % 3)  # from almost uniform to peaked distributions
    passes: list[int] = []
    model.register_forward_hook(
        lambda module, args, inputs, output: passes.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    return model.eval(), passes


def pages(seed: int, count: int = 4) -> list[str]:
    """Return prompts of OCR correction of different lengths."""
    draw = random.Random(seed)
    return [ocr.format_ocr(" ".join(draw.choices(WORDS, k=draw.randint(1, 20))))[0] for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_those_of_plain_greedy_decoding(tokenizer, seed):
    """For any model, text, logits processor, stop, batch and length."""
    draw = random.Random(seed)
    for architecture in ("pleias", "gpt2"):
        model, passes = random_model(tokenizer, architecture, seed)
        prompts = pages(seed)
        for penalty in (None, 1.0, 6.0):
            options = {
                "stop": STOP if draw.random() < 0.7 else "e",
                "repetition_penalty": draw.choice([1.0, 1.2]),
                "batch_tokens": draw.choice([1, 300, 4000]),
                "max_new_tokens": draw.choice([2, 20, 20]),
            }
            if penalty is not None:
                options["logits_processor"] = partial(edit_penalty_processor, penalty=penalty)
            plain = complete(model, tokenizer, prompts, **options)
            count = len(passes)
            for draft in (input_draft, PromptDraft):
                assert complete(model, tokenizer, prompts, **options, draft=draft) == plain, options
            assert len(passes) <= 3 * count
            passes.clear()


def test_an_output_that_repeats_its_input_takes_one_pass_a_draft(tokenizer):
    model, passes = random_model(tokenizer, "pleias", 0)
    prompt = ocr.format_ocr(" ".join(map(input_of, pages(0))))[0]
    size = len(tokenizer(input_of(prompt)).input_ids)
    near = partial(edit_penalty_processor, penalty=1e4)
    options = {"max_new_tokens": 200, "stop": STOP, "logits_processor": near, "draft": input_draft}
    assert complete(model, tokenizer, [prompt], **options) == [input_of(prompt)]
    assert size > drafting.LONGEST and len(passes) == -(-(size + 1) // (drafting.LONGEST + 1))


def test_rows_of_a_batch_do_not_wait_for_each_other(tokenizer):
    """A row that repeats its input ends early, and leaves the batch to one that does not."""
    model, passes = random_model(tokenizer, "pleias", 1)
    widths: list[int] = []
    model.register_forward_hook(
        lambda module, args, inputs, output: widths.append(len(inputs["input_ids"])), with_kwargs=True
    )
    prompts = pages(1, 2)

    def near(tokenizer, prompts_of_rows):
        return edit_penalty_processor(
            tokenizer, prompts_of_rows, penalty=1e4 if prompts_of_rows[0] == prompts[0] else 0
        )

    options = {"max_new_tokens": 60, "stop": STOP, "logits_processor": near, "draft": input_draft}
    outputs = complete(model, tokenizer, prompts, **options)
    assert outputs == [complete(model, tokenizer, [prompt], **options)[0] for prompt in prompts]
    assert widths[0] == 2 and 1 in widths


@pytest.mark.parametrize(("architecture", "accepts"), [("pleias", 1), ("gpt2", 1), ("mistral", 0), ("mamba", 0)])
def test_models_without_attention_to_every_token_are_decoded_plainly(tokenizer, architecture, accepts):
    model, passes = random_model(tokenizer, architecture, 0)
    assert accepts_drafts(model) == accepts
    prompts, options = pages(2, 2), {"max_new_tokens": 4, "stop": STOP}
    assert complete(model, tokenizer, prompts, **options, draft=input_draft) == complete(
        model, tokenizer, prompts, **options
    )


# Drafts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "rest"),
    [
        ("", "Tbe old honse stood by the modern river"),
        ("The", " old honse stood by the modern river"),
        ("The old house", " stood by the modern river"),
        ("The house", " stood by the modern river"),  # a word less
        ("The very old honse st", "ood by the modern river"),  # a word more, and half a word
        ("Tbe old honse stood by the modem r", "iver"),  # rn became m
        ("Tbe old honse stood by the modern river", ""),
    ],
)
def test_a_draft_continues_where_the_output_has_arrived(tokenizer, output, rest):
    stop = tokenizer.convert_tokens_to_ids(STOP)
    draft = InputDraft(tokenizer, "Tbe old honse stood by the modern river", stop)
    ids, proposed = tokenizer(output, add_special_tokens=False).input_ids, []
    for length in range(len(ids) + 1):  # as in decoding, which extends the output
        proposed = draft.propose(ids[:length], 100)
    assert tokenizer.decode(proposed[:-1]) == rest and proposed[-1] == stop
    assert draft.propose(ids, 3) == proposed[:3]


def test_after_its_stop_token_an_output_has_no_draft(tokenizer):
    draft = InputDraft(tokenizer, "the old house", None)
    assert draft.propose(tokenizer("the old house").input_ids, 8) == []


def test_a_quote_is_drafted_from_the_prompt(tokenizer):
    prompt, quote = "the old house stood by the river and nobody came", "nobody said: the old house stood by"
    draft = PromptDraft(tokenizer, prompt)
    ids = tokenizer(quote, add_special_tokens=False).input_ids
    start = next(i for i, token in enumerate(ids) if tokenizer.decode(ids[:i]).endswith("house"))
    assert tokenizer.decode(draft.propose(ids[:start], 100)) == prompt.partition("house")[2]
    assert draft.propose(ids[:1], 8) == draft.propose([], 8) == []
