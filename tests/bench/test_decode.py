"""Benchmark of generation: llama.cpp continues prompts as the model does, and every way of generating is measured."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from modeling_pleias import PleiasConfig, PleiasForCausalLM
from training.bench.decode import LLAMA_CPP, WRITE_GGUF, DecodeBench, llama_cpp, measure_decoding


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer, tmp_path_factory):
    """Model of random bf16 weights whose choices are clear, its folder, and its GGUF file."""
    folder = tmp_path_factory.mktemp("decode")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = PleiasForCausalLM(PleiasConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, "-c", WRITE_GGUF, str(folder), str(folder / "bf16.gguf")]
    subprocess.run(command, check=True)
    return model.float(), folder, folder / "bf16.gguf"


def test_llama_cpp_continues_each_prompt_of_a_batch_by_the_tokens_of_the_model(tiny):
    model, _, gguf = tiny
    prompts = torch.randint(100, 400, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, repetition_penalty=1.2, eos_token_id=None
    )
    with llama_cpp(gguf, 2, 24, 1) as generate:
        assert generate(prompts, 6) == expected[:, 8:].tolist()


def test_each_way_of_generating_is_measured_at_each_batch_size(tiny):
    _, folder, gguf = tiny
    report = measure_decoding(DecodeBench(batches=[1, 2], prompt_tokens=8, new_tokens=4, rounds=2), folder, gguf)
    kinds = ("transformers' Llama, fp32", "Pleias, fp32", "transformers' Llama, bf16", "Pleias, bf16")
    ways = [*kinds, "Llama, read_bf16_weights", "Pleias, read_bf16_weights", LLAMA_CPP]
    assert {batch: list(rows) for batch, rows in report.items()} == {1: ways, 2: ways}
    assert all(row["prefill"] > 0 for rows in report.values() for row in rows.values())
