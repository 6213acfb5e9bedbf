"""Values that the Hub accepts in the metadata of a model card."""

import json
from pathlib import Path

LISTS = json.loads(Path(__file__).with_name("hub_lists.json").read_text(encoding="utf-8"))
