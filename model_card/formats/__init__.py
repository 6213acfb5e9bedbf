"""Variants and formats of a release (Llama, GGUF, ONNX, OpenVINO), and their checks against torch."""
