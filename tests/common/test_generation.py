"""Batched completions equal those of a simple greedy loop over single prompts."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from modeling_pleias import PleiasConfig, PleiasForCausalLM, PleiasTokenizer
from training.common.generation import UnpaddedRepetitionPenaltyLogitsProcessor, complete

PROMPTS = ["the old house", "la vieille maison au bord de l'eau", "", "the"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = PleiasForCausalLM(PleiasConfig(vocab_size=400, num_key_value_heads=1, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return PleiasTokenizer.from_pretrained(tiny_tokenizer)


def greedy(
    model, tokenizer, prompt: str, count: int, penalty: float, ends: list[int], *, plain: bool = False
) -> list[int]:
    """Greedy decoding with a repetition penalty, without cache, padding or batch."""
    ids = tokenizer(prompt, split_special_tokens=plain).input_ids
    new: list[int] = []
    while len(new) < count:
        scores = model(torch.tensor([ids + new])).logits[0, -1].detach()
        for seen in set(ids + new):
            scores[seen] = scores[seen] * penalty if scores[seen] < 0 else scores[seen] / penalty
        new.append(int(scores.argmax()))
        if new[-1] in ends:
            return new[:-1]
    return new


def test_padding_with_the_end_of_text_is_not_penalised_as_text(model, tokenizer):
    """A tokenizer without a padding token is padded with its end of text: a token that the model soon generates."""
    short, long = PROMPTS[0], " ".join(PROMPTS[:2] * 2)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    free = greedy(model, tokenizer, short, 12, 1.5, [])
    for end in dict.fromkeys(free):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        outputs = complete(model, tokenizer, [short, long], max_new_tokens=12, repetition_penalty=1.5)
        assert outputs[0] == tokenizer.decode(greedy(model, tokenizer, short, 12, 1.5, [end]))


@given(
    padding=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    penalty=st.floats(0.5, 2),
    seed=st.integers(0, 99),
)
def test_the_repetition_penalty_is_that_of_transformers_on_the_text_without_padding(padding, penalty, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (len(padding), 6), generator=generator)
    scores = torch.randn(len(padding), 9, generator=generator)
    processor = UnpaddedRepetitionPenaltyLogitsProcessor(penalty, torch.tensor(padding))
    for row, scored in enumerate(processor(ids, scores.clone())):
        text, expected = ids[row : row + 1, padding[row] :], scores[row : row + 1].clone()
        if text.shape[1]:
            expected = RepetitionPenaltyLogitsProcessor(penalty)(text, expected)
        assert torch.equal(scored, expected[0])


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_batch_equals_its_prompts_completed_alone(model, tokenizer, penalty):
    outputs = complete(model, tokenizer, PROMPTS, max_new_tokens=12, repetition_penalty=penalty, batch_tokens=100)
    ends = [tokenizer.eos_token_id]
    assert outputs == [tokenizer.decode(greedy(model, tokenizer, prompt, 12, penalty, ends)) for prompt in PROMPTS]


def test_special_tokens_written_in_a_prompt_are_text_if_it_is_of_others(model, tokenizer):
    prompts = [f"the old{tokenizer.eos_token}house", "the old [PAD]"]
    plain, formatted = (complete(model, tokenizer, prompts, max_new_tokens=12, plain=plain) for plain in (True, False))
    ends = [tokenizer.eos_token_id]
    for outputs, is_plain in ((plain, True), (formatted, False)):
        expected = [greedy(model, tokenizer, prompt, 12, 1, ends, plain=is_plain) for prompt in prompts]
        assert outputs == [tokenizer.decode(ids) for ids in expected]
    assert plain[0] != formatted[0] and plain[1] != formatted[1]


def test_a_continuation_ends_before_the_stop_token(model, tokenizer):
    ids = greedy(model, tokenizer, PROMPTS[0], 12, 1.2, [])
    stop = tokenizer.convert_ids_to_tokens(ids[4])
    first = ids.index(ids[4])
    [output] = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=12, stop=stop, repetition_penalty=1.2)
    assert output == tokenizer.decode(ids[:first]).partition(stop)[0]


def test_a_stop_text_that_is_not_a_token_truncates_the_continuation(model, tokenizer):
    [untruncated] = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=12)
    stop = untruncated[3:9]
    assert stop not in tokenizer.get_vocab()
    assert complete(model, tokenizer, PROMPTS[:1], max_new_tokens=12, stop=stop) == [untruncated.partition(stop)[0]]
