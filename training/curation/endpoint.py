"""An OpenAI-compatible endpoint that somebody else runs, behind datatrove's inference runner.

vLLM in production, any llama.cpp server for trying. Requests go out `concurrency` at a time; what goes wrong with one
is a `Failure` of that one, never the end of the run.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.inference.servers.base import InferenceServer

from ..config import InputError


class Failure(Exception):
    """An answer that did not come or cannot be used. The message is the kind: here timeout, connection, server_error,
    refused or nonsense; `rewriting` has more."""


@dataclass
class Endpoint:
    """An OpenAI-compatible server.

    Args:
        url: its address, as http://localhost:8000 (a closing /v1 is accepted).
        model: the name under which it serves the model; rewritten documents are marked with it.
        timeout: seconds for one answer.
        attempts: tries for one passage.
        pause: seconds before the second try after a failure of transport; it doubles with each.
        concurrency: requests in flight.
        key_variable: environment variable that holds the endpoint's key, where it wants one.
    """

    url: str
    model: str
    timeout: float = 120
    attempts: int = 4
    pause: float = 1
    concurrency: int = 32
    key_variable: str | None = None

    @property
    def base(self) -> str:
        """The address that ends in /v1."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"

    def headers(self) -> dict[str, str]:
        """The key, if there is one.

        Raises:
            InputError: when the variable is not set.
        """
        if not self.key_variable:
            return {}
        if not os.environ.get(self.key_variable):
            raise InputError(f"The environment variable {self.key_variable} is not set: put the endpoint's key there.")
        return {"Authorization": f"Bearer {os.environ[self.key_variable]}"}

    def check(self) -> None:
        """See that the endpoint is there and lets us in, before documents fail one by one.

        Raises:
            InputError: when it is not, does not, or serves other models only.
        """
        try:
            answer = httpx.get(f"{self.base}/models", headers=self.headers(), timeout=min(self.timeout, 30))
            answer.raise_for_status()
            served = [model["id"] for model in answer.json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The endpoint {self.url} does not list its models at {self.base}/models "
                f"({error or type(error).__name__}): start it, or mend --endpoint.url."
            ) from None
        if self.model not in served:
            raise InputError(
                f"The endpoint {self.url} serves {', '.join(served) or 'no model'}, not {self.model}: "
                "mend --endpoint.model."
            )


class Server(InferenceServer):
    """datatrove's view of an endpoint that somebody else runs.

    datatrove's own `EndpointServer` will not do (0.10.1): on localhost it has no timeout and takes the whole run down
    at an HTTP 500; elsewhere it probes URL/v1/models but sends to URL/chat/completions, so no vLLM address suits both.
    """

    def __init__(self, config: InferenceConfig, rank: int, endpoint: Endpoint) -> None:
        super().__init__(config, rank)
        self._is_master = True  # on every node of a Slurm job: there are no workers to hold
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
        return True  # `Endpoint.check` has seen to it

    async def __aexit__(self, *error) -> None:
        await self.client.aclose()
        await super().__aexit__(*error)

    async def _make_request(self, payload: dict) -> dict:
        try:
            # httpx's timeout is for each read; an answer that trickles in must end too
            posted = self.client.post(f"{self.endpoint.base}/chat/completions", json=payload)
            answer = await asyncio.wait_for(posted, self.endpoint.timeout)
        except (httpx.TimeoutException, asyncio.TimeoutError):
            raise Failure("timeout") from None
        except httpx.HTTPError:
            raise Failure("connection") from None
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Failure("server_error")
        if answer.status_code != 200:
            raise Failure("refused")
        try:
            body = answer.json()
            choice = body["choices"][0]
            said = {"content": str(choice["message"]["content"])}  # and nothing else that a server may add
            return {
                "choices": [{"message": said, "finish_reason": choice["finish_reason"]}],
                "usage": body.get("usage") or {},
            }
        except (ValueError, LookupError, TypeError):
            raise Failure("nonsense") from None


class Runner(InferenceRunner):
    """datatrove's runner on an endpoint, with the results gathered here in place of a writer."""

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
        return Server(self.config, rank, self.endpoint)

    async def metrics_reporter(self, interval: int = 600) -> None:
        """Nothing: the account counts what came of it."""

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error) -> None:
        return None

    def write(self, document: Document, rank: int = 0, **kwargs) -> None:
        """Keep a document's result, the part of datatrove's writers that the runner calls."""
        self.results[document.id] = document.metadata["rollout_results"][0]
