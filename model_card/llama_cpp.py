"""llama.cpp on a GGUF file, through its own server: ids of texts, log-probabilities, greedy text."""

import http.client
import json
import os
from pathlib import Path

import numpy as np
import xllamacpp

from .files import ReleaseError

# llama.cpp ends a text at these entries by their names, whatever the file says.
ENDS = ("<|im_end|>",)


class LlamaCpp:
    """A server in this process, for as long as the `with` block lasts.

    Keys and values are kept in fp32 and attention is the plain one, so that what remains between this and torch is the
    weights' format and the order of additions.

    Args:
        path: GGUF file.
        context: tokens of prompt and continuation together.

    Raises:
        ReleaseError: when llama.cpp does not load the file; its own words are on stderr.
    """

    def __init__(self, path: Path, *, context: int):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        parameters.verbosity = 1  # errors
        parameters.cpuparams.n_threads = len(os.sched_getaffinity(0))
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError:
            raise ReleaseError(f"llama.cpp does not load {path.name}; what it says of it stands above.") from None
        self._address = self._server.listening_address.split("//")[1]

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_) -> None:
        del self._server

    def call(self, endpoint: str, body: dict) -> dict:
        """The answer of one of the server's endpoints."""
        connection = http.client.HTTPConnection(self._address)  # one each: the server ends a connection after a while
        connection.request("POST", endpoint, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        assert response.status == 200, answer
        return json.loads(answer)

    def ids(self, text: str) -> list[int]:
        """Ids of a text, with what the vocabulary says is put before it."""
        return self.call("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def log_probabilities(self, ids: list[int], vocabulary: int) -> np.ndarray:
        """Log-probabilities (V,) of what follows the ids."""
        # Generating part of a character, the server would tell no probabilities: it is made to generate a letter,
        # which does not change what it tells.
        body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
        body |= {"logit_bias": [[self.ids("a")[-1], 1e6]]}
        found = np.full(vocabulary, np.nan)
        for entry in self.call("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def score(self, ids: list[int], position: int) -> tuple[float, int]:
        """Log-probability of the id at a position after those before it, and the likeliest id there.

        The server tells probabilities of what it generates, so it is made to generate that id. Tokens that are part of
        a character only are not told: leave them out.
        """
        body = {"prompt": ids[:position], "n_predict": 1, "n_probs": 1, "temperature": 0}
        body |= {"logit_bias": [[ids[position], 1e6]], "cache_prompt": True}
        found = self.call("/completion", body)["completion_probabilities"][0]
        assert found["id"] == ids[position], (found, ids[position])
        return found["logprob"], found["top_logprobs"][0]["id"]

    def greedy(self, ids: list[int], count: int, repetition_penalty: float) -> list[int]:
        """The ids that follow, each the likeliest, with transformers' repetition penalty on all that came before.

        They end at the vocabulary's end mark, and at an entry of `ENDS`.
        """
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        body |= {"repeat_penalty": repetition_penalty, "repeat_last_n": len(ids) + count}
        return self.call("/completion", body)["tokens"]
