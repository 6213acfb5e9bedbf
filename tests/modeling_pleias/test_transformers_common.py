"""Pleias passes the tests that transformers runs on every model of its library (see `transformers_tests.py`).

Those that start processes take minutes and run with `-m slow`. About 50 tests are skipped, with a reason, because they
need a GPU, an optional kernel library, experts or a vision tower.
"""

import unittest
from unittest import mock

import pytest
import torch
import transformers_tests
from transformers.models.auto import modeling_auto

from modeling_pleias import (
    PleiasConfig,
    PleiasForCausalLM,
    PleiasForQuestionAnswering,
    PleiasForSequenceClassification,
    PleiasForTokenClassification,
    PleiasModel,
)

if reason := transformers_tests.missing():
    pytest.skip(reason, allow_module_level=True)

# Modules, not names, if pytest would collect an imported test class.
from transformers_tests import test_fsdp_mixin as fsdp  # noqa: E402
from transformers_tests import test_tensor_parallel_mixin as tensor_parallel  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

# Mapping in transformers' modeling_auto, and this project's class. The mixins choose labels and classes by these
# mappings, which contain the models of transformers.
MAPPINGS = {
    "MODEL_MAPPING_NAMES": PleiasModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": PleiasForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": PleiasForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": PleiasForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": PleiasForQuestionAnswering,
}

# Tests that cannot run, and why.
DESELECTED = {
    "test_generation_tester_mixin_inheritance": "needs the generation mixin, which the distribution lacks",
}


class PleiasModelTester:
    """A tiny grouped-query model and its inputs, in the form that the mixins require."""

    base_model_class = PleiasModel
    causal_lm_class = PleiasForCausalLM
    is_training = True
    batch_size, seq_length = 13, 7
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    num_labels = 3

    def get_config(self) -> PleiasConfig:
        return PleiasConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=32,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PleiasConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.tril(torch.ones_like(input_ids))}


class Harness:
    """Base class: setup of every test case below."""

    model_tester = PleiasModelTester()
    all_model_classes = tuple(MAPPINGS.values())

    def setUp(self):
        patches = [mock.patch.dict(getattr(modeling_auto, name), pleias=c.__name__) for name, c in MAPPINGS.items()]
        # The distributed tests run for the model types on these lists only, or for all.
        patches.append(mock.patch.object(tensor_parallel, "TP_DISTRIBUTED_TEST_MODEL_TYPES", None))
        patches.append(mock.patch.object(fsdp, "FSDP_DISTRIBUTED_TEST_MODEL_TYPES", None))
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)


class PleiasModelTest(Harness, ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    def test_config(self):
        ConfigTester(self, config_class=PleiasConfig, hidden_size=64).run_common_tests()


for name in DESELECTED:
    setattr(PleiasModelTest, name, None)


@pytest.mark.slow
class PleiasTensorParallelTest(Harness, tensor_parallel.TensorParallelTesterMixin, unittest.TestCase):
    pass


@pytest.mark.slow
class PleiasFSDPTest(Harness, fsdp.FSDPTesterMixin, unittest.TestCase):
    def _skip_if_insufficient_devices(self, world_size):
        """Never skip: gloo ranks share cores."""


def test_nothing_is_deselected_that_transformers_no_longer_has():
    assert [name for name in DESELECTED if not callable(getattr(ModelTesterMixin, name))] == []
