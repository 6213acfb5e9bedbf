"""Rewriting and content warnings against a real HTTP server with the OpenAI chat API, which returns errors on demand.

One test runs a llama.cpp server with a real model; it needs a GGUF file in PLEIAS_TEST_GGUF and is skipped without.
Some sentences are hostile, because they must be removed.
"""

import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from training.common.config import InputError, parse
from training.common.language import LANGUAGES
from training.curation.endpoint import Endpoint
from training.curation.lexicon import LexiconScorer
from training.curation.pipeline import curate
from training.curation.recipe import CurationConfig
from training.curation.rewriting import PROMPT_VERSION, RUN, Request, _prompts, payload, repeats, rewrite, sentences
from training.curation.toxicity import verdict
from training.curation.toxicity_axes import passages

SCORER = LexiconScorer()
HOSTILE = "I hate immigrants and Muslims, and all of those women are worthless scum in our town."
STORY = "The train came in at seven in the morning, and the market opened soon after it. "
DOCUMENT = STORY + HOSTILE + " " + STORY
GENTLE = STORY + "I was unhappy in those years and blamed people whom I had never met. " + STORY
WARNING = "This document contains demeaning statements about groups of people that were common in its time."


TRICKLE = object()  # a byte every 0.1 s: each read is fast, the complete response is not


class Model:
    """Local endpoint. `reply(passage, nth)` returns the content of the nth response, (status, content), or a float:
    seconds until the connection closes without a response."""

    def __init__(self, reply, *, finish="stop", served="tiny"):
        self.requests: list[dict] = []
        self.reply, self.finish, lock = reply, finish, threading.Lock()
        model = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                assert self.path == "/v1/models"
                self.respond(200, {"data": [{"id": served}]})

            def do_POST(self):
                assert self.path == "/v1/chat/completions"
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    nth = len(model.requests)
                    model.requests.append(body | {"authorization": self.headers.get("Authorization")})
                passage = body["messages"][-1]["content"].removeprefix("<passage>\n").removesuffix("\n</passage>")
                reply = model.reply(passage, nth)
                if isinstance(reply, float):
                    time.sleep(reply)
                    return
                if reply is TRICKLE:
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    for _ in range(20):
                        self.wfile.write(b" ")
                        time.sleep(0.1)
                    return
                status, text = reply if isinstance(reply, tuple) else (200, reply)
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": model.finish}
                self.respond(status, text if isinstance(text, bytes) else {"choices": [choice]})

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **settings):
        defaults = {"url": self.url, "model": "tiny", "timeout": 5, "max_attempts": 2, "retry_delay": 0.01}
        return Endpoint(**defaults | settings)


def content(**output):
    return json.dumps(output)


def request(text=DOCUMENT, *, identifier="a", language="en", action="rewrite"):
    return Request(identifier=identifier, text=text, language=language, action=action)


def only(model, requests=None, **settings):
    [result] = rewrite(requests or [request()], model.endpoint(**settings), scorer=SCORER)
    return result


# Accepted outputs ---------------------------------------------------------------------------------


def test_a_rewritten_document_is_harmless_and_marked_with_the_model():
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        result = only(model)
    assert result.failure is None and result.text == GENTLE.strip() + " "  # the whitespace of the passage is preserved
    assert verdict(SCORER.score([result.text], ["en"])[0]) == "none"
    assert result.marks == {
        "action": "rewrite",
        "rewritten_by": "tiny",
        "prompt_version": PROMPT_VERSION,
        "synthetic": True,
        "passages_rewritten": 1,
    }


def test_only_hostile_passages_are_sent_and_all_others_are_unchanged():
    text = STORY * 60 + "\n\n" + DOCUMENT + "\n\n" + STORY * 60
    with Model(lambda passage, nth: content(text=passage.replace(HOSTILE, "I was unhappy then."))) as model:
        result = only(model, [request(text)])
    assert len(model.requests) == 1 < len(passages(text))
    assert result.text == text.replace(HOSTILE, "I was unhappy then.")


def test_a_content_warning_precedes_the_unchanged_text():
    with Model(lambda passage, nth: content(warning=WARNING)) as model:
        result = only(model, [request(action="warn")])
    assert result.text == f"{WARNING}\n\n{DOCUMENT}"
    assert result.marks["content_warning"] == WARNING and result.marks["synthetic"] is True


def test_results_have_the_order_of_the_requests_whatever_the_order_of_responses():
    def slow_first(passage, nth):
        time.sleep(0.2 if "number 0" in passage else 0)
        return content(text=passage.replace(HOSTILE, "I was unhappy then."))

    requests = [request(DOCUMENT + f"This is number {i}.", identifier=str(i)) for i in range(12)]
    with Model(slow_first) as model:
        results = rewrite(requests, model.endpoint(), scorer=SCORER)
    assert [result.identifier for result in results] == [str(i) for i in range(12)]
    assert all(f"This is number {i}." in result.text for i, result in enumerate(results))


def test_the_request_contains_the_schema_the_prompt_in_the_language_and_the_model():
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        only(model)
    [body] = model.requests
    assert body["model"] == "tiny" and body["authorization"] is None
    assert body["messages"][0]["content"] == _prompts()["en"]["rewrite"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["text"] and schema["additionalProperties"] is False


@pytest.mark.parametrize("usage", ['"none"', "[]", "7", '{"prompt_tokens": "a", "completion_tokens": [1]}'])
def test_the_usage_that_a_server_states_is_not_used(usage):
    response = json.dumps(ACCEPTED | {"usage": json.loads(usage)}).encode()
    with Model(lambda passage, nth: (200, response)) as model:
        assert only(model).failure is None


def test_an_authorization_header_is_sent_as_it_is(monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", "Basic dXNlcjpwYXNz")
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        only(model, api_key_env="ENDPOINT_KEY")
    assert model.requests[0]["authorization"] == "Basic dXNlcjpwYXNz"


@pytest.mark.parametrize("url", ["http://ann:s3cret@host", "http://s3cret@host/v1", "http://host/v1?key=s3cret"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(url, tmp_path, write_corpus, capsys):
    write_corpus(tmp_path / "in" / "en.parquet", [{"text": STORY}])
    arguments = ["--corpus", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--endpoint.model", "m"]
    config = parse(CurationConfig, [*arguments, "--endpoint.url", url], description="")
    with pytest.raises(InputError, match="environment variable, .*api_key_env") as error:
        curate(config)
    assert "s3cret" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_api_key_is_sent_only_if_its_variable_is_configured(monkeypatch):
    monkeypatch.setenv("ENDPOINT_KEY", "sesame")
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        only(model, api_key_env="ENDPOINT_KEY")
        assert model.requests[0]["authorization"] == "Bearer sesame"
        monkeypatch.delenv("ENDPOINT_KEY")
        with pytest.raises(InputError, match="ENDPOINT_KEY"):
            only(model, api_key_env="ENDPOINT_KEY")


def test_every_language_has_both_prompts_in_that_language():
    from training.common.language import identify

    for language in LANGUAGES:
        for action, key in (("rewrite", "text"), ("warn", "warning")):
            prompt = payload("x", action=action, language=language)["messages"][0]["content"]
            assert identify(prompt)[0] == language and f'{{"{key}": "' in prompt and "</passage>" in prompt


# Rejected outputs ---------------------------------------------------------------------------------

LEAK = STORY + "As for the rest: are worthless scum in our town, said nobody. " + STORY
ACCEPTED = {"choices": [{"message": {"content": content(text=GENTLE)}, "finish_reason": "stop"}]}
DUTCH = "De trein kwam om zeven uur in de morgen aan, en de markt ging kort daarna open, zoals iedere dag. " * 2


@pytest.mark.parametrize(
    "reply, failure",
    [
        ("The train came in at seven.", "nonsense"),
        (content(wrong="key"), "nonsense"),
        (content(text=["a", "list"]), "nonsense"),
        ('["text"]', "nonsense"),
        ((200, b"<html>busy</html>"), "nonsense"),
        ((200, b'{"choices": []}'), "nonsense"),
        ("[" * 200_000 + "]" * 200_000, "nonsense"),
        ((200, b"[" * 200_000 + b"]" * 200_000), "nonsense"),
        (content(text=GENTLE + "\ud800"), "nonsense"),
        (content(text=GENTLE + "\x1b[2J"), "nonsense"),
        (content(text=GENTLE + "\x9b2J"), "nonsense"),
        ((200, b'{"choices": [{"message": {"content": "caf\xe9"}, "finish_reason": "stop"}]}'), "nonsense"),
        ((200, json.dumps(ACCEPTED | {"more": "x" * 5_000_000}).encode()), "nonsense"),
        ((200, b'{"choices": {"message": 1}}'), "nonsense"),
        ((200, b'{"choices": [{"message": {"content": "{}"}}]}'), "nonsense"),
        ((500, "out of memory"), "server_error"),
        ((503, "loading"), "server_error"),
        ((429, "slow down"), "server_error"),
        ((400, "context too long"), "refused"),
        (3.0, "timeout"),
        (TRICKLE, "timeout"),
        (0.0, "connection"),
        (content(text=""), "length"),
        (content(text="I cannot help with that."), "length"),
        (content(text=GENTLE * 5), "length"),
        (content(text=DUTCH), "language"),
        (content(text=DOCUMENT), "still_toxic"),
        (content(text=GENTLE.replace("unhappy", "sure that women are worthless")), "still_toxic"),
        (content(text=LEAK), "verbatim"),
    ],
)
def test_an_unusable_response_fails_with_its_error_type_and_without_text(reply, failure):
    with Model(lambda passage, nth: reply) as model:
        result = only(model, timeout=0.3 if failure == "timeout" else 5)
    assert result.failure == failure and result.text is None and result.marks == {}
    assert len(model.requests) == (1 if failure == "refused" else 2)


def test_a_truncated_output_is_rejected():
    with Model(lambda passage, nth: content(text=GENTLE), finish="length") as model:
        assert only(model).failure == "cut_off"


@pytest.mark.parametrize(
    "warning, failure",
    [
        ("Beware.", "length"),
        (WARNING + "\n" + WARNING, "length"),
        ("Dit document bevat vernederende uitspraken over groepen mensen, zoals in die tijd gewoon was.", "language"),
        ("This document says that immigrants are worthless scum, as was usual.", "still_toxic"),
    ],
)
def test_an_unusable_warning_is_rejected(warning, failure):
    with Model(lambda passage, nth: content(warning=warning)) as model:
        assert only(model, [request(action="warn")]).failure == failure


def test_one_failed_passage_fails_the_document_and_returns_no_part_of_it():
    text = (DOCUMENT + STORY * 22 + "\n\n") * 3

    def second_fails(passage, nth):
        return content(text=passage.replace(HOSTILE, "I was unhappy then.")) if nth != 1 else (400, "no")

    with Model(second_fails) as model:
        result = only(model, [request(text)])
    assert result.failure == "refused" and result.text is None


def test_failures_have_their_error_type_while_others_succeed():
    def mixed(passage, nth):
        if "number 1" in passage:
            return (500, "no")
        return content(text=DOCUMENT if "number 2" in passage else passage.replace(HOSTILE, "I was unhappy then."))

    requests = [request(DOCUMENT + f"This is number {i}.", identifier=str(i)) for i in range(4)]
    requests.append(request("print('hello')", identifier="code", language="python"))
    with Model(mixed) as model:
        results = rewrite(requests, model.endpoint(), scorer=SCORER)
    assert Counter(r.failure for r in results) == {None: 2, "server_error": 1, "still_toxic": 1, "language": 1}


def test_failed_requests_are_repeated_with_a_growing_delay_and_another_seed():
    times = []

    def third_time(passage, nth):
        times.append(time.monotonic())
        return (503, "loading") if nth < 2 else content(text=GENTLE)

    with Model(third_time) as model:
        result = only(model, max_attempts=3, retry_delay=0.2)
    assert result.failure is None
    assert [body["seed"] for body in model.requests] == [0, 1, 2]
    first, second = times[1] - times[0], times[2] - times[1]
    assert first >= 0.2 and second >= 0.4


def test_repeated_words_of_a_hostile_sentence_are_detected():
    words = HOSTILE.split()
    for start in range(len(words) - RUN + 1):
        assert repeats(DOCUMENT, f"He wrote: {' '.join(words[start : start + RUN]).upper()}!", "en", SCORER)
    hidden = " ".join(words[:RUN]).replace("e", "e\u200b").replace(" ", "\u00a0")
    assert repeats(DOCUMENT, hidden, "en", SCORER)
    assert not repeats(DOCUMENT, " ".join(words[: RUN - 1]), "en", SCORER)
    assert not repeats(DOCUMENT, STORY, "en", SCORER)  # harmless sentences may be repeated
    assert repeats("You faggot. It rained.", "It rained, you faggot, he wrote.", "en", SCORER)


def test_sentences_lose_no_word():
    text = "One; two.\n\nThree?! Four: five\nsix"
    assert [s.strip() for s in sentences(text)] == ["One;", "two.", "Three?!", "Four: five", "six"]


# Resuming, and the endpoint -----------------------------------------------------------------------


def test_accepted_outputs_are_reused_and_failed_ones_requested_again(tmp_path):
    def first_time(passage, nth):
        return (400, "no") if "number 1" in passage else content(text=passage.replace(HOSTILE, "I was unhappy then."))

    requests = [request(DOCUMENT + f"This is number {i}.", identifier=str(i)) for i in range(3)]
    with Model(first_time) as model:
        before = rewrite(requests, model.endpoint(), scorer=SCORER, cache=tmp_path)
    with Model(lambda passage, nth: content(text=passage.replace(HOSTILE, "I was unhappy then."))) as model:
        after = rewrite(requests, model.endpoint(), scorer=SCORER, cache=tmp_path)
        assert len(model.requests) == 1
    assert [r.failure for r in before] == [None, "refused", None] and [r.failure for r in after] == [None] * 3
    assert after[0] == before[0] and after[2] == before[2]


def test_the_cache_distinguishes_models_and_contains_no_hostile_sentence(tmp_path):
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        rewrite([request()], model.endpoint(), scorer=SCORER, cache=tmp_path)
        assert len(model.requests) == 1
    with Model(lambda passage, nth: content(text=GENTLE), served="larger") as model:
        rewrite([request()], model.endpoint(model="larger"), scorer=SCORER, cache=tmp_path)
        assert len(model.requests) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and not any("worthless" in path.read_text() for path in files)


def test_a_corrupt_or_no_longer_acceptable_cached_output_is_requested_again(tmp_path):
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        rewrite([request()], model.endpoint(), scorer=SCORER, cache=tmp_path)
        [path] = tmp_path.rglob("*.json")
        for text in ("{", json.dumps({"answer": DOCUMENT})):
            path.write_text(text)
            [result] = rewrite([request()], model.endpoint(), scorer=SCORER, cache=tmp_path)
            assert result.failure is None and json.loads(path.read_text())["answer"] == GENTLE.strip()
    assert len(model.requests) == 3


def test_an_unreachable_endpoint_is_an_error_with_its_address():
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        gone = model.endpoint()
    with pytest.raises(InputError, match=gone.url):
        rewrite([request()], gone, scorer=SCORER)


def test_a_model_that_is_not_served_is_an_error_with_the_served_models():
    with Model(lambda passage, nth: content(text=GENTLE)) as model:
        with pytest.raises(InputError, match="serves tiny, not large"):
            rewrite([request()], model.endpoint(model="large"), scorer=SCORER)


def test_without_documents_the_endpoint_is_not_contacted():
    assert rewrite([], Endpoint(url="http://127.0.0.1:9", model="none"), scorer=SCORER) == []


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_an_address_is_accepted_with_and_without_v1(url):
    assert Endpoint(url=url, model="m").base == "http://h:8000/v1"


@pytest.mark.skipif(not os.environ.get("PLEIAS_TEST_GGUF"), reason="PLEIAS_TEST_GGUF is not set to a GGUF file")
def test_a_llama_cpp_server_responds_in_the_requested_format(tmp_path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = os.environ["PLEIAS_TEST_GGUF"]
    params.n_ctx = 4096
    server = xllamacpp.Server(params)
    endpoint = Endpoint(url=server.listening_address, model="", timeout=300, max_attempts=2, concurrency=1)
    import httpx

    endpoint.model = httpx.get(f"{endpoint.base}/models").json()["data"][0]["id"]
    requests = [request(identifier="a"), request(identifier="b", action="warn")]
    results = rewrite(requests, endpoint, scorer=SCORER, cache=tmp_path)
    transport = {"timeout", "connection", "server_error", "refused", "nonsense"}
    assert not {result.failure for result in results} & transport  # the output may be useless, but its format is valid
