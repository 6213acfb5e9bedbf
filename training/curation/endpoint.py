"""Client for an external OpenAI-compatible endpoint (vLLM, llama.cpp), through datatrove's inference runner.

Up to `concurrency` requests are in flight. An error of one request is a `Failure` of that request and never ends the
run.
"""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.inference.servers.base import InferenceServer

from ..common.config import InputError
from ..common.escaping import mask_passwords

MAX_RESPONSE = 4_000_000  # bytes; the longest passage and its output are far below


class EndpointError(Exception):
    """Missing or unusable response. The message is the error type: timeout, connection, server_error, refused or
    nonsense; `rewriting` adds others."""


def extend(data: bytearray, block: bytes) -> None:
    """Append a block of a response.

    Raises:
        EndpointError: If the response has more than MAX_RESPONSE bytes.
    """
    data += block
    if len(data) > MAX_RESPONSE:
        raise EndpointError("nonsense")


def parse_json(data: str | bytes):
    """Parse JSON of a language model or its server.

    Raises:
        EndpointError: If it is not JSON, too deeply nested for Python's parser, or contains half a surrogate pair.
    """
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        raise EndpointError("nonsense") from None


@dataclass
class Endpoint:
    """An OpenAI-compatible server.

    Args:
        url: Address, such as http://localhost:8000, with or without /v1.
        model: Name under which the server offers the model. Rewritten documents are marked with it.
        timeout: Maximum seconds per response.
        max_attempts: Maximum number of requests per passage.
        retry_delay: Seconds before the second attempt after a transport error; doubles with each attempt.
        concurrency: Maximum number of requests in flight.
        api_key_env: Environment variable with the API key, or with a complete Authorization header, such as
            "Basic dXNlcjpwYXNz". Default: no key.
    """

    url: str
    model: str
    timeout: float = 120
    max_attempts: int = 4
    retry_delay: float = 1
    concurrency: int = 32
    api_key_env: str | None = None

    @property
    def base(self) -> str:
        """Address that ends in /v1."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"

    def headers(self) -> dict[str, str]:
        """Return the authorization header, or nothing if no key is configured.

        Raises:
            InputError: If the environment variable is not set.
        """
        if not self.api_key_env:
            return {}
        if not os.environ.get(self.api_key_env):
            raise InputError(f"Environment variable {self.api_key_env} is not set: set it to the endpoint's API key.")
        key = os.environ[self.api_key_env]
        return {"Authorization": key if " " in key else f"Bearer {key}"}

    def check_address(self) -> None:
        """Refuse an address that contains a secret, because settings and commands are published with a model.

        Raises:
            InputError: If the address has a user, a password or a query.
        """
        if mask_passwords(self.url) != self.url or "?" in self.url:
            raise InputError(
                f"--endpoint.url {mask_passwords(self.url.split('?')[0])} contains a user, password or query: put it "
                "into an environment variable, and pass the name of that with --endpoint.api_key_env."
            )

    def check(self) -> None:
        """Check that the endpoint responds and serves the model, before any document is sent.

        Raises:
            InputError: If it does not respond, refuses the key, or serves only other models.
        """
        try:
            settings = {"headers": self.headers(), "timeout": min(self.timeout, 30)}
            with httpx.stream("GET", f"{self.base}/models", **settings) as response:
                response.raise_for_status()
                data = bytearray()
                for block in response.iter_bytes():
                    extend(data, block)
            served = [str(model["id"]) for model in parse_json(data)["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, EndpointError, KeyError, TypeError) as error:
            raise InputError(
                f"The endpoint {self.url} does not list its models at {self.base}/models "
                f"({error or type(error).__name__}): start the server, or correct --endpoint.url."
            ) from None
        if self.model not in served:
            raise InputError(
                f"The endpoint {self.url} serves {', '.join(served) or 'no model'}, not {self.model}: "
                "correct --endpoint.model."
            )


class ExternalServer(InferenceServer):
    """datatrove server for an external endpoint.

    datatrove's `EndpointServer` (0.10.1) is unsuitable: on localhost it has no timeout and an HTTP 500 ends the run;
    elsewhere it probes URL/v1/models but sends to URL/chat/completions, so no vLLM address works for both.
    """

    def __init__(self, config: InferenceConfig, rank: int, endpoint: Endpoint) -> None:
        super().__init__(config, rank)
        self._is_master = True  # on every node of a Slurm job, because there are no workers
        self.endpoint = endpoint
        self.client = httpx.AsyncClient(
            headers=endpoint.headers(),
            timeout=endpoint.timeout,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )

    async def start_server(self) -> None:
        return None

    async def monitor_health(self) -> None:
        await asyncio.Future()

    async def is_ready(self) -> bool:
        return True  # `Endpoint.check` has checked it

    async def __aexit__(self, *error) -> None:
        await self.client.aclose()
        await super().__aexit__(*error)

    async def _make_request(self, payload: dict) -> dict:
        try:
            # httpx's timeout applies to each read; this one limits a response that arrives in small pieces
            status, data = await asyncio.wait_for(self._post(payload), self.endpoint.timeout)
        except (httpx.TimeoutException, asyncio.TimeoutError):
            raise EndpointError("timeout") from None
        except httpx.HTTPError:
            raise EndpointError("connection") from None
        if status >= 500 or status == 429:
            raise EndpointError("server_error")
        if status != 200:
            raise EndpointError("refused")
        try:
            choice = parse_json(data)["choices"][0]
            # Without other fields of the server, such as its usage, which nothing here counts.
            message, reason = {"content": str(choice["message"]["content"])}, str(choice["finish_reason"])
            return {"choices": [{"message": message, "finish_reason": reason}], "usage": {}}
        except (LookupError, TypeError):
            raise EndpointError("nonsense") from None

    async def _post(self, payload: dict) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the response."""
        async with self.client.stream("POST", f"{self.endpoint.base}/chat/completions", json=payload) as response:
            data = bytearray()
            async for block in response.aiter_bytes():
                extend(data, block)
            return response.status_code, data


class CollectingRunner(InferenceRunner):
    """datatrove's inference runner on an endpoint; acts as the output writer and collects the results."""

    def __init__(self, rollout: Callable, endpoint: Endpoint) -> None:
        config = InferenceConfig(
            server_type="endpoint",
            model_name_or_path=endpoint.model,
            endpoint_url=endpoint.url,
            max_concurrent_generations=endpoint.concurrency,
        )
        super().__init__(rollout, config, output_writer=self)
        self.endpoint = endpoint
        self.results: dict[str, dict] = {}

    def _init_server(self, rank: int) -> InferenceServer:
        return ExternalServer(self.config, rank, self.endpoint)

    async def metrics_reporter(self, interval: int = 600) -> None:
        """Report nothing: the curation statistics count the results."""

    def __enter__(self) -> "CollectingRunner":
        return self

    def __exit__(self, *error) -> None:
        return None

    def write(self, document: Document, rank: int = 0, **kwargs) -> None:
        """Store a document's result; the only method of datatrove's writers that the runner calls."""
        self.results[document.id] = document.metadata["rollout_results"][0]
