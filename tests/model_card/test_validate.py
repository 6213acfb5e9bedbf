"""The validator of a card finds each kind of defect."""

import pytest
from cards import change, problems

from model_card import card, validate
from model_card.facts import facts
from model_card.files import ReleaseError, read_json, write_json


def test_a_file_of_the_run_that_was_changed_after_the_release_is_found(folder):
    with open(folder / "runs" / "tiny" / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    (folder / "runs" / "tiny" / "summary.txt").unlink()
    (folder / "runs" / "more.txt").touch()
    assert problems(folder, "number") == [
        "runs/more.txt is not the file that was released",
        "runs/tiny/metrics.jsonl is not the file that was released",
        "runs/tiny/summary.txt is missing, and was released",
    ]


def test_a_continuation_improved_by_hand_is_found_even_without_a_number(folder):
    change(folder / "README.md", "il l'\u00e9, la", "il l'eau, la")
    assert any("samples/1/continuation" in message for message in problems(folder, "number"))


def test_a_difference_that_does_not_follow_from_the_values_is_found(folder):
    path = folder / "evidence" / "comparison.json"
    change(path, "-0.25", "-0.75")
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    (message,) = problems(folder, "number")
    assert "the difference to peer-2 (mean) does not follow" in message


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("license: apache-2.0", "license: apache2", "license: 'apache2' is not one of the Hub's licenses"),
        ("- fr\n", "- french\n", "language: 'french' is not one of the Hub's languages"),
        ("pipeline_tag: text-generation", "pipeline_tag: textgen", "pipeline_tag: 'textgen' is not one of"),
        ("library_name: transformers", "library_name: transformer", "library_name: 'transformer' is not one of"),
        ("tags:", "base_model: a/b\nbase_model_relation: child\ntags:", "base_model_relation: 'child' is not one of"),
        ("tags:", "base_model: a/b\ntags:", "base_model and base_model_relation must be set together"),
        ("- PleIAs/common_corpus", "- common corpus", "datasets: 'common corpus' is not OWNER/NAME"),
        ("tags:", "lisence: mit\ntags:", "lisence is not a key that the Hub knows"),
        ("pipeline_tag: text-generation\n", "", "pipeline_tag is missing"),
        ("training_type: pre-training", "training_type: training", "training_type must be one of"),
        ("      type: held-out", "      kind: held-out", "dataset needs type and name"),
    ],
)
def test_metadata_that_the_hub_would_not_accept_is_found(folder, old, new, message):
    change(folder / "README.md", old, new)
    reported = [p.message for p in validate.validate(folder, run=False)]
    assert any(message in text for text in reported), reported


@pytest.mark.parametrize("text", ["TODO", "[More Information Needed]", "{{ name }}", "{% endif %}", "<your name>"])
def test_a_placeholder_is_found_with_its_line(folder, text):
    with open(folder / "README.md", "a") as file:
        file.write(f"{text}\n")
    lines = (folder / "README.md").read_text().count("\n")
    reported = validate.validate(folder, run=False)
    assert {(p.kind, p.line) for p in reported} == {("placeholder", lines)}


@pytest.mark.parametrize(
    "link, message",
    [
        ("[x](nowhere.md)", "nowhere.md is not in the folder"),
        ("[x](../../secret)", "../../secret is not in the folder"),
        ("[x](#nothing-here)", "no heading has this anchor"),
        ("[x](https://hugging face.co)", None),
        ("[x](https://huggingface)", "is not an address"),
        ("<https://>", "is not an address"),
        ("[x](htp://example.org)", "htp is not a scheme of the web"),
        ("[x](mailto:nobody)", "is not a mail address"),
    ],
)
def test_a_link_without_a_target_is_found(folder, link, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"{link}\n")
    reported = problems(folder, "link")
    assert (message is None and reported == []) or (len(reported) == 1 and message in reported[0]), reported


def test_links_with_a_target_are_accepted(folder):
    with open(folder / "README.md", "a") as file:
        file.write("[a](card.json) [b](#how-to-use) [c](https://arxiv.org/abs/2506.01732) [d](mailto:a@b.org)\n")
    assert problems(folder, "link") == []


def test_a_number_changed_by_hand_is_found_at_its_line(folder):
    parameters = f"{read_json(folder / 'evidence' / 'release.json')['model']['parameters']:,}"
    change(folder / "README.md", parameters, "9" + parameters[1:])
    assert any("model/parameters" in message for message in problems(folder, "number"))


def test_a_number_that_comes_from_no_file_is_found(folder):
    change(folder / "README.md", "It has the architecture", "It has 12 layers and the architecture")
    assert problems(folder, "number") == ["12 comes from no file: print it from a file in the template"]


def test_a_number_in_the_metadata_changed_by_hand_is_found(folder):
    change(folder / "README.md", "value: 2.75", "value: 1.25")
    assert "1.25" in problems(folder, "number")[0]


def test_a_source_that_changed_after_the_card_was_written_is_found(folder):
    path = folder / "evidence" / "release.json"
    (folder / "evidence" / "comparison.json").unlink()  # without it the card shows the run's last validation
    card.write_card(folder.parent, "llama", "", repository=None, base_model=None, relation="finetune")
    assert "| French | 3.250 |\n| mean | 2.750 |" in (folder / "README.md").read_text(encoding="utf-8")
    content = read_json(path)
    content["source"]["run"]["validation"]["validation"]["fr"]["bits_per_byte"] = 1.5
    write_json(path, content)
    messages = "\n".join(problems(folder, "number"))
    assert "3.250 is stale" in messages and "changed after the card was written" in messages
    assert "facts.json: bits_per_byte does not follow" in messages


def test_numbers_that_do_not_follow_from_the_training_data_are_found(folder):
    path = folder / "evidence" / "data.json"
    content = read_json(path)
    content[0]["account"][0]["tokens"] += 1
    write_json(path, content)
    changed = "evidence/data.json: account differs from runs/tiny/manifests/base-annealing.json"
    assert problems(folder, "number") == [
        "evidence/data.json changed after the card was written: write the card again",
        changed,
        *(
            f"evidence/facts.json: {key} does not follow from release.json, data.json and lineage.json"
            for key in ("corpora", "text")
        ),
        "evidence/sources.json does not follow from data.json",
    ]
    card.write_cards(folder.parent, "the command")
    assert problems(folder, "number") == [changed]


def test_a_card_of_an_earlier_release_is_found_in_a_newer_one(folder):
    path = folder.parent / "release.json"
    write_json(path, {**read_json(path), "name": "newer"})
    assert any("write the card again" in message for message in problems(folder, "number"))


def test_emissions_in_kilograms_are_found_even_if_every_file_agrees(folder):
    evidence = folder / "evidence"
    content, runs = read_json(evidence / "release.json"), read_json(evidence / "lineage.json")
    runs["runs"][0]["grams_co2eq"] /= 1000
    write_json(evidence / "lineage.json", runs)
    write_json(evidence / "facts.json", facts(content, read_json(evidence / "data.json"), runs))
    options = {"repository": None, "base_model": None, "relation": "finetune"}
    card.write_card(folder.parent, "llama", "the command", **options)
    (message,) = problems(folder, "number")
    assert "which no electricity emits: the Hub expects grams" in message


def test_a_heading_without_text_is_found(folder):
    with open(folder / "README.md", "a") as file:
        file.write("\n## Results\n")
    assert problems(folder, "section") == ["there is no text under 'Results'"]


@pytest.mark.parametrize(
    "language, code, message",
    [
        ("python", "print('x'", "was never closed"),
        ("bash", "if true; then", "syntax error"),
        ("json", "{,}", "Expecting property name"),
        ("json", "[" * 100_000, "recursion"),
        ("", "text", "a code fence without a language"),
    ],
)
def test_a_code_fence_that_does_not_parse_is_found(folder, language, code, message):
    with open(folder / "README.md", "a") as file:
        file.write(f"\n```{language}\n{code}\n```\n")
    (reported,) = problems(folder, "code")
    assert message in reported


def test_a_card_whose_metadata_are_nested_too_deeply_or_not_utf_8_is_named(tmp_path):
    (tmp_path / "README.md").write_text(f"---\na: {'[' * 1500}\n---\n")
    assert [problem.kind for problem in validate.validate(tmp_path)] == ["metadata"]
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\ncaf\xe9\n")
    with pytest.raises(ReleaseError, match=r"README\.md is not UTF-8 \(.* at byte 24\)"):
        validate.validate(tmp_path)


def test_the_code_of_the_template_runs_in_the_folder_and_an_error_is_reported_with_its_last_line(folder):
    assert "pipeline(" in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "transformers.py").write_text("open('RAN', 'w')")  # a file with the name of a module is none
    assert validate.validate(folder, run=True) == []
    (folder / "model.safetensors").unlink()
    (reported,) = validate.validate(folder, run=True)
    assert reported.kind == "code" and reported.message.startswith("python: ") and "model" in reported.message
    assert not (folder / "RAN").exists()


def test_code_that_no_template_wrote_does_not_run(folder):
    (folder / "template.md").write_text("```python\nopen('RAN', 'w')\n```\n")  # nor does one that the folder brings
    with open(folder / "README.md", "a") as file:
        file.write("\n```python\nopen('RAN', 'w')\n```\n")
    assert validate.validate(folder) == []
    (reported,) = validate.validate(folder, run=True)
    assert reported.message == "python: no template of this package wrote it: not run"
    assert not (folder / "RAN").exists()


def test_the_program_prints_a_table_and_exits_with_status_1(folder, monkeypatch, capsys):
    change(folder / "README.md", "license: apache-2.0", "license: apache2")
    change(folder / "README.md", "tags:", 'lisence: "\\e[2J"\ntags:')
    monkeypatch.setattr("sys.argv", ["validate", str(folder)])
    with pytest.raises(SystemExit) as end:
        validate.main()
    printed = capsys.readouterr().out
    assert end.value.code == 1 and "license: 'apache2'" in printed and "\x1b" not in printed
