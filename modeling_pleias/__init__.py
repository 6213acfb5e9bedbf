"""Pleias models for transformers. Importing this package registers them with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .configuration_pleias import PleiasConfig
from .modeling_pleias import (
    PleiasForCausalLM,
    PleiasForQuestionAnswering,
    PleiasForSequenceClassification,
    PleiasForTokenClassification,
    PleiasModel,
    PleiasPreTrainedModel,
    cpu_compute_dtype,
)
from .tokenization_pleias import PleiasTokenizer

__version__ = "0.1.0"

AutoConfig.register("pleias", PleiasConfig)
AutoTokenizer.register(PleiasConfig, fast_tokenizer_class=PleiasTokenizer)
AutoModel.register(PleiasConfig, PleiasModel)
AutoModelForCausalLM.register(PleiasConfig, PleiasForCausalLM)
AutoModelForSequenceClassification.register(PleiasConfig, PleiasForSequenceClassification)
AutoModelForTokenClassification.register(PleiasConfig, PleiasForTokenClassification)
AutoModelForQuestionAnswering.register(PleiasConfig, PleiasForQuestionAnswering)

__all__ = [
    "PleiasConfig",
    "PleiasForCausalLM",
    "PleiasForQuestionAnswering",
    "PleiasForSequenceClassification",
    "PleiasForTokenClassification",
    "PleiasModel",
    "PleiasPreTrainedModel",
    "PleiasTokenizer",
    "cpu_compute_dtype",
]
