"""Values that the Hub accepts in the metadata of a model card, and the repositories of a release."""

import json
from pathlib import Path

LISTS = json.loads(Path(__file__).with_name("hub_lists.json").read_text(encoding="utf-8"))
# Each folder becomes its own repository on the Hub; the variant without code has the plain name.
REPOSITORIES = {"llama": "", "custom": "-custom", "gguf": "-GGUF", "onnx": "-ONNX", "openvino": "-OpenVINO"}
