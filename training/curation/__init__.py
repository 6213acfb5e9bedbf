"""Filter, clean and deduplicate a corpus for training: pure functions, and one datatrove pipeline that runs them.

python -m training.curation --config light --in CORPUS --out CURATED
python -m training.curation --explain IDENTIFIER --out CURATED
"""
