"""transformers' test mixins as the package `transformers_tests`, with the modules that its source distribution lacks.

`fetch_transformers_tests.py` unpacks the folder, from which `import transformers_tests.test_modeling_common` imports.
The distribution includes `tests/test_*.py` and no subfolder, so four of its imports fail. Two are helpers, defined
here. Two are the generation and export mixins, which are empty here: `test_parity.py` compares generation with
Llama's, and `test_model.py` exports the model and opens the pipelines, whose mixin needs tiny models from the Hub.
"""

import os
import sys
from importlib.metadata import version
from types import ModuleType

import torch
import torch.distributed as dist
from fetch_transformers_tests import FIX, FOLDER, fetched_version
from torch.multiprocessing import spawn

# Import machinery treats a module with a path as a package; ranks spawned by the mixins import it in the same way.
__path__ = [str(FOLDER / "tests")]


def missing() -> str | None:
    """Return why the mixins cannot be imported, or None if they can."""
    if fetched_version() == version("transformers"):
        return None
    return f"transformers' own tests of version {version('transformers')} are not in {FOLDER}: {FIX}."


def _rank(rank: int, impl, port: int, world_size: int, args: tuple) -> None:
    store = dist.TCPStore("localhost", port, world_size=None, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    try:
        impl(rank, *args)
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int):
    """`run_distributed(n)(impl)(*args)` calls `impl(rank, *args)` in n gloo processes and re-raises their errors."""

    def launch(impl):
        def run(*args):
            store = dist.TCPStore("localhost", 0, world_size=None, is_master=True, wait_for_workers=False)
            spawn(_rank, args=(impl, store.port, world_size, args), nprocs=world_size)

        return run

    return launch


def _module(name: str, **contents) -> None:
    module = ModuleType(f"{__name__}.{name}")
    module.__dict__.update(contents)
    sys.modules[module.__name__] = module


for package in ("exporters", "generation", "utils"):
    _module(package, __path__=[])
_module("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_module("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
# Settings that every config takes, each with a value that is not its default.
_module(
    "utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["PleiasModel"],
        "id2label": {0: "no", 1: "perhaps", 2: "yes"},
        "label2id": {"no": 0, "perhaps": 1, "yes": 2},
        "problem_type": "regression",
        "pad_token_id": 7,
        "bos_token_id": 8,
        "eos_token_id": 9,
    },
)
_module(
    "distributed_testing_utils",
    run_distributed=run_distributed,
    _get_distributed_backend=lambda: "gloo",
    _get_distributed_device_type=lambda: "cpu",
    _get_rank_device=lambda rank: torch.device("cpu"),
    _set_rank_device=lambda rank: None,
    _start_rank_processes=lambda fn, args, nprocs: spawn(fn, args=args, nprocs=nprocs),
)
