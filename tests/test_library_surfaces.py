"""Check that the private and easily renamed surfaces of other libraries which this project uses still exist.

A test that fails names the file which relies on the surface. `make test-versions` runs this file with the oldest and
the newest allowed releases.
"""

import ctypes
import inspect
import pkgutil
from dataclasses import fields
from importlib.metadata import packages_distributions, version

import pytest

from model_card.release import choose_formats

# Methods that a file overrides, with the parameters that they must have.
OVERRIDDEN = {
    "training/finetuning/trainers.py": [
        "transformers:Trainer._save_checkpoint(model, trial)",
        "transformers:Trainer._load_from_checkpoint(resume_from_checkpoint, model)",
        "transformers:Trainer._load_optimizer_and_scheduler(checkpoint)",
        "transformers:Trainer._load_rng_state(checkpoint)",
        "transformers:Trainer.create_optimizer(model)",
        "trl:SFTTrainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)",
    ],
    "training/run/record.py": ["codecarbon.output:BaseOutput.out(total, delta)"],
    "training/curation/deduplication.py": [
        "datatrove.pipeline.dedup:MinhashDedupSignature.get_shingles(text)",
        "datatrove.pipeline.dedup:MinhashDedupSignature.get_signature(shingles)",
    ],
    "training/curation/endpoint.py": [
        "datatrove.pipeline.inference.run_inference:InferenceRunner._init_server(rank)",
        "datatrove.pipeline.inference.run_inference:InferenceRunner.metrics_reporter(interval)",
        "datatrove.pipeline.inference.servers.base:InferenceServer._make_request(payload)",
    ],
    "training/curation/pii_recognizers.py": [
        "presidio_analyzer:PatternRecognizer.validate_result(pattern_text)",
        "presidio_analyzer:PatternRecognizer.invalidate_result(pattern_text)",
    ],
    "modeling_pleias/modeling_pleias.py": ["transformers:PreTrainedModel._init_weights(module)"],
}
# What calls these methods, if it is not their own class.
CALLERS = {
    "trl:SFTTrainer": "transformers:Trainer",
    "codecarbon.output:BaseOutput": "codecarbon.emissions_tracker:BaseEmissionsTracker",
}

# Functions and classes that a file calls, with the parameters that it relies on.
CALLED = {
    "training/finetune.py": [
        "trl:DPOTrainer(model, args, train_dataset, processing_class)",
        "trl:GRPOTrainer(model, reward_funcs, args, train_dataset, processing_class)",
        "trl:SFTTrainer(model, args, train_dataset, processing_class)",
    ],
    "training/finetuning/recipe.py": ["trl:SFTConfig(assistant_only_loss, max_length, train_sampling_strategy)"],
    "training/step/optimizer.py": ["torch.optim:Muon(lr, weight_decay, momentum, adjust_lr_fn)"],
    "training/plan.py": ["codecarbon.input:DataSource.get_global_energy_mix_data()"],
    "training/run/record.py": [
        "codecarbon:OfflineEmissionsTracker(country_iso_code)",
        "codecarbon:OfflineEmissionsTracker.flush()",
        "codecarbon.emissions_tracker:BaseEmissionsTracker(output_methods, log_level, output_handlers)",
        "codecarbon.output:EmissionsData(duration, energy_consumed, emissions)",
    ],
    "training/tasks/token_bytes.py": ["transformers.convert_slow_tokenizer:bytes_to_unicode()"],
    "training/tasks/translation/metrics.py": [
        "sacrebleu.metrics:BLEU._extract_corpus_statistics(hypotheses, references)",
        "sacrebleu.metrics:BLEU._compute_score_from_stats(stats)",
        "sacrebleu.metrics:CHRF._extract_corpus_statistics(hypotheses, references)",
        "sacrebleu.metrics:CHRF._compute_score_from_stats(stats)",
    ],
    "training/run/trackers.py": ["accelerate.tracking:get_available_trackers()"],
    "training/curation/endpoint.py": [
        "datatrove.pipeline.inference.run_inference:InferenceRunner(rollout_fn, config, output_writer)",
    ],
    "training/curation/executors.py": [
        "datatrove.executor:LocalPipelineExecutor._run_for_rank(rank, local_rank)",
        "datatrove.executor:LocalPipelineExecutor.get_incomplete_ranks(skip_completed)",
    ],
    "training/evaluation/benchmarks.py": [
        "lm_eval.evaluator:evaluate(lm, task_dict, limit, bootstrap_iters, log_samples)",
        "lm_eval.models.huggingface:HFLM(pretrained, tokenizer, backend, batch_size, max_length)",
        "lm_eval.tasks:TaskManager(include_path, include_defaults)",
        "lm_eval.tasks:TaskManager.match_tasks(task_list)",
        "lm_eval.tasks:TaskManager.load(task_list)",
    ],
    "model_card/formats/exports.py": [
        "transformers.exporters.utils:decompose_for_generation(model, inputs, multi_token_decode)",
        "transformers.exporters:OnnxConfig(dynamic)",
        "transformers.exporters:OnnxExporter.export(model, sample_inputs, config)",
        "transformers.exporters:OpenVINOConfig(dynamic)",
        "transformers.exporters:OpenVINOExporter.export(model, sample_inputs, config)",
        "transformers.exporters.base:ExportedModel.save_pretrained(save_directory)",
    ],
    "model_card/formats/gguf_writer.py": [
        "gguf:GGUFWriter.add_tensor(name, tensor, raw_dtype)",
        "gguf:dequantize(data, qtype)",
        "gguf:get_tensor_name_map(arch, n_blocks)",
        "gguf:quant_shape_to_byte_shape(shape, quant_type)",
        "gguf:quants.quantize(data, qtype)",
    ],
    "modeling_pleias/modeling_pleias.py": [
        "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface(attn_implementation, default)",
    ],
    "tests/conftest.py": [
        "accelerate.state:AcceleratorState._reset_state(reset_partial_state)",
        "accelerate.state:GradientState._reset_state()",
    ],
}

# Attributes and constants that a file reads.
READ = {
    "training/step/parallel.py": ["torch:_foreach_mul_"],
    "training/finetuning/base_model.py": ["transformers:PreTrainedTokenizerFast.backend_tokenizer"],
    "model_card/formats/gguf_writer.py": ["gguf:GGML_QUANT_SIZES", "gguf:GGML_QUANT_VERSION"],
    "model_card/formats/llama_cpp.py": [
        "xllamacpp:CommonParams.cache_type_k",
        "xllamacpp:CommonParams.cpuparams",
        "xllamacpp:CommonParams.flash_attn_type",
        "xllamacpp:Server.listening_address",
        "xllamacpp:ggml_type.GGML_TYPE_F32",
        "xllamacpp:llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED",
    ],
    "model_card/serve.py": [
        "gguf:Keys.General.SAMPLING_PENALTY_LAST_N",
        "xllamacpp:CommonParams.chat_template",
        "xllamacpp:CommonParams.cors_origins",
        "xllamacpp:CommonParams.endpoint_slots",
        "xllamacpp:CommonParams.hostnames",
        "xllamacpp:CommonParams.model_alias",
        "xllamacpp:CommonParamsSampling.penalty_last_n",
    ],
}

# Environment variables, options and instance attributes, which appear only in the source of a module or class.
IN_SOURCE = {
    "training/data/documents.py": {"pyarrow.parquet:ParquetWriter": ["self.is_open = True", "'is_open'"]},
    "training/run/launch.py": {
        "accelerate.utils.launch": [
            '"ACCELERATE_MIXED_PRECISION"',
            '"ACCELERATE_USE_CPU"',
            '"MASTER_ADDR"',
            '"MASTER_PORT"',
            '"OMP_NUM_THREADS"',
        ],
        "accelerate.commands.launch": [
            '"--num_processes"',
            '"--num_machines"',
            '"--machine_rank"',
            '"--num_cpu_threads_per_process"',
            '"--config_file"',
            '"--cpu"',
        ],
        "accelerate.utils.environment": [
            '"MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"'
        ],
    },
    "training/step/optimizer.py": {
        "accelerate.optimizer:AcceleratedOptimizer": ["self.optimizer = "],
        "torch.optim.adam": ['getattr(self, "found_inf"'],
    },
    "training/step/parallel.py": {
        "accelerate.utils.launch": [
            '"ACCELERATE_USE_FSDP"',
            '"ACCELERATE_USE_PARALLELISM_CONFIG"',
            '"FSDP_VERSION"',
            '"FSDP_OFFLOAD_PARAMS"',
            '"FSDP_ACTIVATION_CHECKPOINTING"',
            '"FSDP_FORWARD_PREFETCH"',
            '"FSDP_RESHARD_AFTER_FORWARD"',
            '"PARALLELISM_CONFIG_"',
        ],
    },
    "training/finetuning/trainers.py": {
        "transformers:Trainer": ["self._tr_loss = ", "self._globalstep_last_logged = "],
    },
    "training/curation/endpoint.py": {
        "datatrove.pipeline.inference.run_inference": ['"rollout_results"'],
        "datatrove.pipeline.inference.servers.base:InferenceServer": ["self._is_master = "],
    },
}


def rows(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return pairs of a surface and the file that uses it."""
    return [(surface, user) for user, surfaces in table.items() for surface in surfaces]


def described(name: str) -> str:
    """Return the installed distribution and version of the package that contains `module:attribute`."""
    distribution = packages_distributions()[name.partition(":")[0].partition(".")[0]][0]
    return f"{distribution} {version(distribution)}"


def resolve(name: str, user: str):
    """Return `module:attribute`. If it does not exist, fail the test with the file that uses it."""
    if name.startswith("transformers.exporters") and (sentence := choose_formats(None)[1].get("onnx")):
        pytest.skip(sentence)
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(f"{described(name)} has no {name}: {user} uses it; see what replaced it.")


def parameters(function) -> list[str]:
    """Return the names of the parameters of a function or class, without `self`."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("surface, user", rows(OVERRIDDEN))
def test_an_overridden_method_has_the_same_parameters_and_is_called(surface, user):
    name, _, expected = surface.removesuffix(")").partition("(")
    actual = ", ".join(parameters(resolve(name, user)))
    assert actual == expected, (
        f"{described(name)}: {name} takes ({actual}), not ({expected}): {user} overrides it; change the override."
    )
    owner, _, method = name.rpartition(".")
    caller = CALLERS.get(owner, owner)
    assert f".{method}(" in inspect.getsource(resolve(caller, user)), (
        f"{described(caller)}: {caller} does not call {method}, which {user} overrides; see what replaced it."
    )


@pytest.mark.parametrize("surface, user", rows(CALLED))
def test_a_called_function_has_the_parameters_that_are_passed(surface, user):
    name, _, expected = surface.removesuffix(")").partition("(")
    missing = set(filter(None, expected.split(", "))) - set(parameters(resolve(name, user)))
    assert not missing, (
        f"{described(name)}: {name} has no parameter {', '.join(sorted(missing))}: {user} passes it; "
        "see what replaced it."
    )


@pytest.mark.parametrize("name, user", rows(READ))
def test_an_attribute_that_is_read_exists(name, user):
    resolve(name, user)


@pytest.mark.parametrize(
    "name, text, user", [(name, text, user) for user, by in IN_SOURCE.items() for name in by for text in by[name]]
)
def test_the_source_of_a_library_contains_a_name(name, text, user):
    assert text in inspect.getsource(resolve(name, user)), (
        f"{described(name)}: the source of {name} has no {text}: {user} relies on it; see what replaced it."
    )


def test_llama_cpp_exports_the_function_that_quantises():
    import xllamacpp

    assert hasattr(ctypes.CDLL(xllamacpp.xllamacpp.__file__), "ggml_quantize_chunk"), (
        f"{described('xllamacpp')} has no ggml_quantize_chunk: model_card/formats/gguf_writer.py calls it."
    )


def test_every_default_of_fine_tuning_is_a_field_of_the_trainers_config():
    from training.finetuning.recipe import DEFAULTS, METHODS

    # transformers renamed gradient_checkpointing to activation_checkpointing; DEFAULTS has both.
    renamed = {"gradient_checkpointing", "activation_checkpointing"}
    for config in METHODS.values():
        known = {field.name for field in fields(config)}
        unknown = sorted(set(DEFAULTS) - known - (renamed if renamed & known else set()))
        assert not unknown, (
            f"{described('trl')}: {config.__name__} has no field {', '.join(unknown)}, so the default in "
            "training/finetuning/recipe.py has no effect; see what replaced it."
        )
