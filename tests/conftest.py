"""What every test shares: no hub, and the marks that transformers' own mixins carry."""

import os

# Before transformers is imported: a test that would reach for the hub fails at once instead of waiting for it.
os.environ["HF_HUB_OFFLINE"] = "1"
# transformers skips its slow tests unless asked; here -m decides about them, as about ours.
os.environ["RUN_SLOW"] = "1"
# The models are tiny: threads would only wait for each other, and for those of other test workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TRANSFORMERS_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in TRANSFORMERS_MARKS:
        config.addinivalue_line("markers", f"{mark}: set by transformers' own test mixins")
