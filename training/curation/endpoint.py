"""Client for an external OpenAI-compatible endpoint (vLLM, llama.cpp), through datatrove's inference runner.

Up to `concurrency` requests are in flight. An error of one request is a `Failure` of that request and never ends the
run.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.inference.servers.base import InferenceServer

from ..common.config import InputError


class EndpointError(Exception):
    """Missing or unusable response. The message is the error type: timeout, connection, server_error, refused or
    nonsense; `rewriting` adds others."""


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
        api_key_env: Environment variable with the API key. Default: no key.
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
        return {"Authorization": f"Bearer {os.environ[self.api_key_env]}"}

    def check(self) -> None:
        """Check that the endpoint responds and serves the model, before any document is sent.

        Raises:
            InputError: If it does not respond, refuses the key, or serves only other models.
        """
        try:
            response = httpx.get(f"{self.base}/models", headers=self.headers(), timeout=min(self.timeout, 30))
            response.raise_for_status()
            served = [model["id"] for model in response.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
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
            post = self.client.post(f"{self.endpoint.base}/chat/completions", json=payload)
            response = await asyncio.wait_for(post, self.endpoint.timeout)
        except (httpx.TimeoutException, asyncio.TimeoutError):
            raise EndpointError("timeout") from None
        except httpx.HTTPError:
            raise EndpointError("connection") from None
        if response.status_code >= 500 or response.status_code == 429:
            raise EndpointError("server_error")
        if response.status_code != 200:
            raise EndpointError("refused")
        try:
            body = response.json()
            choice = body["choices"][0]
            message = {"content": str(choice["message"]["content"])}  # without other fields of the server
            return {
                "choices": [{"message": message, "finish_reason": choice["finish_reason"]}],
                "usage": body.get("usage") or {},
            }
        except (ValueError, LookupError, TypeError):
            raise EndpointError("nonsense") from None


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
