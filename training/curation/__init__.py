"""From Common Corpus to a corpus that may be trained on: pure functions, and one datatrove pipeline over them.

python -m training.curation --config light --in CORPUS --out CURATED
python -m training.curation --explain IDENTIFIER --out CURATED
"""
