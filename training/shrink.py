"""A dry run: a pretraining config with every number divided by one factor, so that all its stages run on a laptop."""

from dataclasses import replace

from .config import InputError
from .recipe import PretrainConfig

# Below these a model or a window is nothing to train.
LAYERS, HEAD_DIMENSION, SEQUENCE_LENGTH = 2, 16, 64


def divided(number: int, factor: int, *, least: int = 1) -> int:
    """`number / factor`, rounded, but at least `least`."""
    return max(least, round(number / factor))


def shrunk(config: PretrainConfig, factor: int, *, text: PretrainConfig, processes: int = 1) -> PretrainConfig:
    """`config` with steps, warm-up, decay, intervals, batches and model divided by `factor`; rates stay as they are.

    Stages keep their names and order, and each keeps at least one step, so every switch happens. The model keeps its
    proportions (queries per key/value head, width per head, MLP to width). The text is that of another run, so that
    nothing but a laptop is needed: the corpora of the stages, and with them the vocabulary, are not the run's own.

    Args:
        factor: at least 1; 500 divides every number of steps in nano_1.2b without a rest.
        text: run whose data, corpus and vocabulary are used.
        processes: that will run it; a step has a multiple of them in sequences.

    Raises:
        InputError: when the factor is not at least 1.
    """
    if factor < 1:
        raise InputError(f"--shrink {factor} is not a number to divide by; give 1 or more, 500 for a dry run.")
    shape = config.model_config()
    queries_per_head = shape.num_attention_heads // shape.num_key_value_heads
    groups = divided(shape.num_key_value_heads, factor)
    head_dimension = divided(shape.head_dim // 2, factor, least=HEAD_DIMENSION // 2) * 2
    heads = groups * queries_per_head
    hidden = heads * head_dimension
    model = {
        **{key: value for key, value in config.model.items() if key not in ("head_dim", "max_position_embeddings")},
        "vocab_size": text.model_config().vocab_size,
        "hidden_size": hidden,
        "intermediate_size": hidden * shape.intermediate_size // shape.hidden_size,
        "num_hidden_layers": divided(shape.num_hidden_layers, factor, least=LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }
    stages = [
        replace(
            stage,
            steps=divided(stage.steps, factor),
            sequences=divided(stage.sequences, factor * processes) * processes,
            shards=None,
        )
        for stage in config.stages
    ]
    o, every = config.optimizer, config.every
    sequence_length = divided(config.sequence_length, factor, least=SEQUENCE_LENGTH)
    return replace(
        config,
        name=f"{config.name}-shrunk-{factor}",
        shrink=1,
        stages=stages,
        init_from=None,
        model=model,
        corpus=text.corpus,
        data=text.data,
        optimizer=replace(
            o,
            warmup_steps=divided(o.warmup_steps, factor),
            decay_steps=None if o.decay_steps is None else divided(o.decay_steps, factor),
        ),
        every=replace(
            every,
            log=1,
            validate=divided(every.validate, factor),
            samples=every.samples and divided(every.samples, factor),
            checkpoint=divided(every.checkpoint, factor),
            permanent=every.permanent and divided(every.permanent, factor),
        ),
        sequence_length=sequence_length,
        precision="auto",
        compile=False,
        validation_tokens=divided(config.validation_tokens, factor, least=sequence_length),
    )
