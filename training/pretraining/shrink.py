"""Scale a pretraining config down, every size by one factor, for a dry run of all stages on a laptop."""

from dataclasses import replace

from ..common.config import InputError
from .recipe import PretrainConfig

# Lower bounds: smaller models and windows are not worth training.
LAYERS, HEAD_DIMENSION, SEQUENCE_LENGTH = 2, 16, 64


def scale_down(number: int, factor: int, *, minimum: int = 1) -> int:
    """Return `number / factor`, rounded, at least `minimum`."""
    return max(minimum, round(number / factor))


def shrink_config(config: PretrainConfig, factor: int, *, text: PretrainConfig, processes: int = 1) -> PretrainConfig:
    """Divide steps, warm-up, decay, intervals, batches and model of a config by `factor`; keep its learning rates.

    Stages keep their names and order, and each has at least one step, so every switch happens. The model keeps its
    proportions (queries per key/value head, width per head, MLP to width). Corpora and vocabulary are those of another
    run, such as the demo, so that a laptop suffices.

    Args:
        config: Config to scale down.
        factor: Divisor, at least 1; 500 divides every number of steps in nano_1.2b without a remainder.
        text: Config whose data, corpus and vocabulary are used.
        processes: Number of processes of the dry run; the sequences of a step are a multiple of it.

    Raises:
        InputError: If the factor is below 1.
    """
    if factor < 1:
        raise InputError(f"--shrink must be at least 1, got {factor}. Use 500 for a dry run of nano_1.2b.")
    shape = config.model_config()
    queries_per_head = shape.num_attention_heads // shape.num_key_value_heads
    groups = scale_down(shape.num_key_value_heads, factor)
    head_dimension = scale_down(shape.head_dim // 2, factor, minimum=HEAD_DIMENSION // 2) * 2
    heads = groups * queries_per_head
    hidden = heads * head_dimension
    model = {
        **{key: value for key, value in config.model.items() if key not in ("head_dim", "max_position_embeddings")},
        "vocab_size": text.model_config().vocab_size,
        "hidden_size": hidden,
        "intermediate_size": hidden * shape.intermediate_size // shape.hidden_size,
        "num_hidden_layers": scale_down(shape.num_hidden_layers, factor, minimum=LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }
    stages = [
        replace(
            stage,
            steps=scale_down(stage.steps, factor),
            sequences=scale_down(stage.sequences, factor * processes) * processes,
            shards=None,
        )
        for stage in config.stages
    ]
    o, every = config.optimizer, config.every
    sequence_length = scale_down(config.sequence_length, factor, minimum=SEQUENCE_LENGTH)
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
            warmup_steps=scale_down(o.warmup_steps, factor),
            decay_steps=None if o.decay_steps is None else scale_down(o.decay_steps, factor),
        ),
        every=replace(
            every,
            log=1,
            validate=scale_down(every.validate, factor),
            samples=every.samples and scale_down(every.samples, factor),
            checkpoint=scale_down(every.checkpoint, factor),
        ),
        sequence_length=sequence_length,
        precision="auto",
        compile=False,
        validation_tokens=scale_down(config.validation_tokens, factor, minimum=sequence_length),
    )
