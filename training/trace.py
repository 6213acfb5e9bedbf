"""Find which passages of a text occur verbatim in the training shards, in which documents, under which licences.

    python -m training.trace --index INDEX --shards SHARDS --tokenizer TOKENIZER    # build, once
    python -m training.trace --index INDEX --text FILE
    python -m training.trace --index INDEX --benchmark FILE --json REPORT.json

The last finds the contaminated texts of a benchmark: training/tracing/contamination.py. Which passages are found:
training/tracing/search.py. How the index is stored: training/tracing/trace_index.py.
"""

if not __package__:  # run by path; same as `python -m training.trace`
    import sys
    from pathlib import Path

    sys.path[0], __package__ = str(Path(__file__).resolve().parents[1]), "training"

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from .common.config import InputError, parse, run_main
from .common.escaping import terminal_line
from .common.files import UNFINISHED, read_text, write_json
from .tracing.contamination import SHORT, find_overlaps
from .tracing.search import THRESHOLDS, TraceIndex, build_report
from .tracing.trace_index import build_index

MIN_TOKENS = 20  # of a listed passage of a text


@dataclass
class TraceConfig:
    """Build an index, search it for the passages of a text or of the test texts of a benchmark.

    Args:
        index: Folder of the index.
        text: Text file in UTF-8.
        benchmark: Test texts of an evaluation, each listed with its longest passage. JSON Lines or Parquet (file or
            folder) with text, prompt and completion, prompt and answer, or ocr and truth; .txt files; a run folder,
            for its held-out text; the name or YAML file of a task of lm-evaluation-harness.
        min_tokens: Minimum tokens of a listed passage. Default: 20; for a benchmark 10, of a passage that counts as
            contamination.
        max_documents: Maximum documents listed per passage.
        json: JSON file for the complete result. The report of a benchmark is also written as Markdown next to it.
        shards: Folder of token shards to build the index from, or several folders: '[A,B]'.
        tokenizer: Folder of the tokenizer of the shards.
        splits: Splits to index: train, or '[train,validation]'.
        block_megabytes: Megabytes of text per block; building a block needs 10 times as much memory.
    """

    index: Path
    text: Path | None = None
    benchmark: str | None = None
    min_tokens: int | None = None
    max_documents: int = 3
    json: Path | None = None
    shards: list[Path] | Path | None = None
    tokenizer: Path | None = None
    splits: list[str] = field(default_factory=lambda: ["train"])
    block_megabytes: float = 128


def read_query(path: Path) -> str:
    """Read the text to search for.

    Raises:
        InputError: If it is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"--text {path} is not a file: pass a text file.")
    text = read_text(path)
    if not text:
        raise InputError(f"--text {path} is empty: pass a file that contains text.")
    return text


def report_benchmark(config: TraceConfig) -> None:
    """Print the contamination of a benchmark, and write it to the JSON file and to Markdown."""
    from .evaluation import contamination_report  # lazy imports: take seconds, which a search of a text need not wait
    from .evaluation.benchmark_texts import read_test_texts
    from .evaluation.contamination import MIN_TOKENS as CONTAMINATED
    from .evaluation.contamination import check_index, lengths_for

    index = TraceIndex(config.index)
    check_index(index)
    texts, finished, min_tokens = read_test_texts(config.benchmark), None, config.min_tokens or CONTAMINATED
    if config.json:
        finished = config.json.with_name(f".{config.json.name}.{UNFINISHED.strip('.')}")
    overlaps = find_overlaps(
        index,
        [text.text for text in texts],
        lengths_for(min_tokens),
        finished=finished,
        progress="contamination",
    )
    report = contamination_report.build_report(config.benchmark, index, texts, overlaps, min_tokens)
    contamination_report.print_report(report)
    if config.json:
        contamination_report.write_markdown(report, config.json.with_suffix(".md"))
        write_json(config.json, report)
        shutil.rmtree(finished)


def format_report(result: dict, *, min_tokens: int) -> str:
    """Format the result of `findings` for the terminal, with the spans of at least `min_tokens` tokens."""
    index, spans = result["index"], [span for span in result["spans"] if span["length"] >= min_tokens]
    lines = [
        f"{result['characters']:,} characters, compared with {index['documents']:,} documents of {index['tokens']:,} "
        f"tokens ({', '.join(index['splits'])}; index {index['fingerprint'][:12]})",
        "copied in spans of at least "
        + ", ".join(f"{tokens} tokens: {100 * share:.1f}%" for tokens, share in result["copied"].items()),
        f"spans of at least {min_tokens} tokens: {len(spans)}",
    ]
    for span in spans:
        text = " ".join(span["text"].split())
        text = text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}"
        times = f"{span['occurrences']} time{'s' * (span['occurrences'] > 1)}"
        where = f"{span['in_documents']} document{'s' * (span['in_documents'] > 1)}"
        end = span["start"] + len(span["text"])
        lines += ["", f"characters {span['start']}-{end}: {span['length']} tokens, {times} in {where}", f'  "{text}"']
        for document in span["documents"]:
            lines.append(
                f"  {document['identifier']} | {document['collection']} | {document['language']} | "
                f"{document['license']} ({document['decision']}) | {document['split']} | {document['shard']}, "
                f"byte {document['position']:,}"
            )
        if more := span["in_documents"] - len(span["documents"]):
            lines.append(f"  and {more:,} more")
    if result["outside"]:
        lines += ["", f"documents with a span that are OUTSIDE the open lists: {len(result['outside'])}"]
        lines += [f"  {document['identifier']} ({document['license']!r})" for document in result["outside"]]
    elif result["spans"]:
        lines += ["", "every document with a span is on the open lists"]
    return "\n".join(map(terminal_line, lines))


def main() -> None:
    """Run `python -m training.trace`."""
    config = parse(TraceConfig, description="Find passages of a text that occur verbatim in the training data.")
    if config.shards is None and config.text is None and config.benchmark is None:
        raise InputError(
            "Nothing to do: pass --text FILE or --benchmark FILE, or --shards and --tokenizer to build the index."
        )
    if config.benchmark is not None and config.text is not None:
        raise InputError("--text and --benchmark cannot be combined: pass one of them.")
    if config.benchmark is not None and (config.min_tokens or SHORT) < SHORT:
        raise InputError(f"--min_tokens must be at least {SHORT} for a benchmark, got {config.min_tokens}.")
    if config.shards is not None:
        if config.tokenizer is None:
            raise InputError("--tokenizer is missing: pass the folder that was passed to training.shards.")
        settings = {"splits": config.splits, "block_megabytes": config.block_megabytes}
        folders = config.shards if isinstance(config.shards, list) else [config.shards]
        facts = build_index(folders, tokenizer=config.tokenizer, out=config.index, **settings)
        size = sum(sum(block["files"].values()) for block in facts["blocks"])
        print(
            f"wrote {config.index / 'index.json'}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
            f"{facts['bytes'] / 1e6:,.1f} MB of text; {len(facts['blocks'])} blocks, {size / 1e6:,.1f} MB in total"
        )
    if config.text is not None:
        text, index = read_query(config.text), TraceIndex(config.index)
        min_tokens = MIN_TOKENS if config.min_tokens is None else config.min_tokens
        smallest = min(min_tokens, *THRESHOLDS)
        spans = index.spans(text, min_tokens=smallest, max_documents=config.max_documents)
        result = build_report(index, text, spans)
        print(format_report(result, min_tokens=min_tokens))
        if config.json:
            write_json(config.json, {"text": str(config.text), **result})
    if config.benchmark is not None:
        report_benchmark(config)


if __name__ == "__main__":
    run_main(main)
