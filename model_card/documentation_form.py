"""The Model Documentation Form of the Code of Practice for general-purpose AI models, filled.

Sections and items are those of the form in the Code's Transparency Chapter (10 July 2025).
"""

from .attested import in_range, nothing, or_none, rows_by
from .facts import command_of

LINK = "https://digital-strategy.ec.europa.eu/en/policies/contents-code-gpai"
SIZES = (  # parameters, from
    (0, "1-500M"),
    (5e8, "500M-5B"),
    (5e9, "5B-15B"),
    (15e9, "15B-50B"),
    (50e9, "50B-100B"),
    (100e9, "100B-500B"),
    (500e9, "500B-1T"),
    (1e12, ">1T"),
)
INFERENCE_TOKENS = 100_000  # that the figure of computation for inference is given for


def significant(value: float) -> str:
    """A number with two significant figures, as the form asks for."""
    return f"{value:.1e}" if value else "0"


def fill(provider: dict, run: dict) -> list[tuple[str, list]]:
    """Sections and items of the Model Documentation Form."""
    who, model, data = (provider[name] for name in ("provider", "model", "data"))
    config, shape, sessions = run["config"], run["model"], run["sessions"]
    tokens = run["tokens"]
    flops, hours = 6 * run["parameters"] * tokens, run["seconds"] / 3600
    first, rows = sessions[0], rows_by(run, "language")
    hardware = first["hardware"]["gpus"][0] if first["hardware"]["gpus"] else first["hardware"]["cpu"]
    context = f"{shape['max_position_embeddings']:,} tokens"
    optimizer = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in config["optimizer"].items() if value)
    kinds = {
        "Publicly available datasets": data["publicly_available"],
        "Web crawling": data["crawlers"],
        "Private non-publicly available datasets obtained from third parties": data["private_datasets"],
        "User data": data["user_data_model"] if nothing(data["user_data_services"]) else data["user_data_services"],
        "Data collected through other means": data["other_sources"],
    }
    synthetic = any(corpus["synthetic"] for corpus in run["corpora"]) or not nothing(data["synthetic_beyond_curation"])
    provenance = [name for name, said in kinds.items() if not nothing(said)]
    provenance += ["Synthetic data that is not publicly accessible"] if synthetic else []
    removed = [row["reason"] for corpus in run["corpora"] for row in corpus["left_out"]]
    return [
        (
            "General information",
            [
                ("Legal name for the model provider", who["name"]),
                ("Model name", or_none(model["names"])),
                (
                    "Model authenticity",
                    [("File", "sha256"), *run["weights"].items()],
                ),
                ("Release date", str(model["released"])),
                ("Union market release date", str(model["placed_on_union_market"])),
                ("Model dependencies", "N/A" if nothing(model["dependencies"]) else or_none(model["dependencies"])),
            ],
        ),
        (
            "Model properties",
            [
                ("Model architecture", "A decoder-only transformer of the Llama family."),
                (
                    "Design specifications of the model",
                    f"{shape['num_hidden_layers']} layers of width {shape['hidden_size']}, "
                    f"{shape['num_attention_heads']} heads with {shape['num_key_value_heads']} key-value heads, "
                    f"a gated MLP of width {shape['intermediate_size']}, rotary positions, RMSNorm; a vocabulary of "
                    f"{shape['vocab_size']:,}.",
                ),
                ("Input modalities", f"Text, at most {context}."),
                ("Output modalities", f"Text; input and output together at most {context}."),
                (
                    "Total model size",
                    f"{significant(run['parameters'])} parameters ({run['parameters']:,}); range "
                    f"{in_range(run['parameters'], SIZES)}.",
                ),
            ],
        ),
        (
            "Methods of distribution and licences",
            [
                ("Distribution channels", or_none(model["distribution_channels"])),
                ("Licence", f"{model['license']}: {model['license_link']}"),
            ],
        ),
        (
            "Use",
            [
                ("Acceptable use policy", or_none(model["acceptable_use_policy"])),
                ("Intended uses", or_none(model["intended_uses"])),
                ("Type and nature of AI systems in which the model can be integrated", or_none(model["systems"])),
                ("Technical means for model integration", "Weights as files; see the model card."),
                ("Required hardware", or_none(model["required_hardware"])),
                ("Required software", or_none(model["required_software"])),
            ],
        ),
        (
            "Training process",
            [
                (
                    "Design specifications of the training process",
                    f"{tokens:,} tokens in "
                    + ", then ".join(f"{stage['steps']:,} steps ({stage['name']})" for stage in run["stages"])
                    + f"; next-token prediction over windows of {config['sequence_length']:,} tokens; {optimizer}.",
                ),
                ("Command", command_of(sessions)),
            ],
        ),
        (
            "Information on the data used for training, testing and validation",
            [
                ("Data type/modality", "Text"),
                ("Data provenance", ", ".join(provenance)),
                ("How data was obtained and selected", or_none(data["obtained"])),
                (
                    "Number of data points",
                    f"{sum(corpus['train']['documents'] for corpus in run['corpora']):,} documents for training, "
                    f"{sum(corpus['held_out']['documents'] for corpus in run['corpora']):,} for validation.",
                ),
                ("Scope and main characteristics", f"{sum(rows.values()):,} tokens in {', '.join(rows)}."),
                (
                    "Data curation methodologies",
                    f"Documents were left out for: {', '.join(removed)}." if removed else "No curation is on file.",
                ),
                (
                    "Measures to detect unsuitability of data sources",
                    "A document whose licence is not on the open list never reaches the training data.",
                ),
                ("Measures to detect identifiable biases", or_none(data["bias_measures"])),
            ],
        ),
        (
            "Computational resources (during training)",
            [
                (
                    "Training time",
                    f"{hours:.2g} hours on {first.get('processes', 1)} process(es), {hardware}",
                ),
                ("Amount of computation used for training", f"{significant(flops)} FLOP"),
                ("Measurement methodology", "6 x parameters x tokens, the attention's own products left out."),
            ],
        ),
        (
            "Energy consumption (during training and inference)",
            [
                ("Amount of energy used for training", f"{significant(run['kwh'] / 1000)} MWh"),
                ("Measurement methodology", run["method"]),
                (
                    "Benchmarked amount of computation used for inference",
                    f"{significant(2 * run['parameters'] * INFERENCE_TOKENS)} FLOP",
                ),
                (
                    "Measurement methodology of that",
                    f"Derived, not measured: 2 x parameters x {INFERENCE_TOKENS:,} generated tokens.",
                ),
            ],
        ),
    ]
