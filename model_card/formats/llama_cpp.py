"""Run llama.cpp on a GGUF file through its own server: token ids, log-probabilities, greedy text."""

import http.client
import json
import os
import sys
from pathlib import Path

import numpy as np
import xllamacpp

from ..files import ReleaseError

# llama.cpp ends a text at tokens of these names, whatever end token the file specifies.
ENDS = ("<|im_end|>",)


def server_parameters(path: Path, *, context: int) -> xllamacpp.CommonParams:
    """Return the settings that all servers of this package share.

    Args:
        path: GGUF file.
        context: Maximum tokens of prompt and continuation together.
    """
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 1  # errors
    parameters.cpuparams.n_threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return parameters


class LlamaCppServer:
    """A llama.cpp server in this process, for the duration of a `with` block.

    Keys and values are stored in fp32, and attention is not the flash kernel, so that only the format of the weights
    and the order of additions differ from torch.

    Args:
        path: GGUF file.
        context: Maximum tokens of prompt and continuation together.

    Raises:
        ReleaseError: If llama.cpp does not load the file; its own message is on stderr.
    """

    def __init__(self, path: Path, *, context: int):
        parameters = server_parameters(path, context=context)
        parameters.n_gpu_layers = 0
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError:
            raise ReleaseError(f"llama.cpp does not load {path.name}; its message is above.") from None
        self._address = self._server.listening_address.split("//")[1]

    def __enter__(self) -> "LlamaCppServer":
        return self

    def __exit__(self, *_) -> None:
        del self._server

    def call(self, endpoint: str, body: dict) -> dict:
        """Return the response of an endpoint of the server."""
        connection = http.client.HTTPConnection(self._address)  # one per call: the server closes old connections
        connection.request("POST", endpoint, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        assert response.status == 200, content
        return json.loads(content)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, with the begin token if the file adds one."""
        return self.call("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def log_probabilities(self, ids: list[int], vocabulary: int) -> np.ndarray:
        """Return the log-probabilities (V,) of the next token after `ids`."""
        # The server returns no probabilities if it generates part of a character. The bias forces a letter, and does
        # not change the probabilities.
        body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
        body |= {"logit_bias": [[self.ids("a")[-1], 1e6]]}
        scores = np.full(vocabulary, np.nan)
        for entry in self.call("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
            scores[entry["id"]] = entry["logprob"]
        return scores

    def score(self, ids: list[int], position: int) -> tuple[float, int]:
        """Return the log-probability of the id at a position given those before it, and the most probable id there.

        The server returns probabilities of the tokens it generates, so the bias forces that id. It returns none for
        tokens that are only part of a character: skip them.
        """
        body = {"prompt": ids[:position], "n_predict": 1, "n_probs": 1, "temperature": 0}
        body |= {"logit_bias": [[ids[position], 1e6]], "cache_prompt": True}
        token = self.call("/completion", body)["completion_probabilities"][0]
        assert token["id"] == ids[position], (token, ids[position])
        return token["logprob"], token["top_logprobs"][0]["id"]

    def greedy(self, ids: list[int], count: int, repetition_penalty: float) -> list[int]:
        """Return the greedy continuation, with transformers' repetition penalty over the whole prefix.

        It ends at the vocabulary's end token or a token of `ENDS`.
        """
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        body |= {"repeat_penalty": repetition_penalty, "repeat_last_n": len(ids) + count}
        return self.call("/completion", body)["tokens"]
