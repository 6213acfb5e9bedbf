"""Celadon, the toxicity classifier of "Toxicity of the Commons" (arXiv 2410.22587), through transformers.

The architecture follows the published description: DeBERTa-v3-small with five linear heads of four classes on the
vector of the first token. Parameter names are those of the published weights (`deberta.*`, `heads.N.weight`,
`heads.N.bias`), so `PleIAs/celadon` loads from the Hub by name or from a folder.
"""

import torch
from torch import nn
from transformers import AutoTokenizer, DebertaV2Model, DebertaV2PreTrainedModel

from ..common.config import InputError
from ..common.normalization import normalize
from .toxicity_axes import AXES, Scores, combine

LEVELS = 4  # 0 to 3
WINDOW = 512  # tokens with special tokens, in training and inference
BATCH = 32


class Celadon(DebertaV2PreTrainedModel):
    """DeBERTa-v3 with one classification head per axis. `config` is a `DebertaV2Config`."""

    def __init__(self, config):
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.heads = nn.ModuleList(nn.Linear(config.hidden_size, LEVELS) for _ in AXES)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (B, 5 axes, 4 levels) of token ids (B, T) and their mask; axes are in the order of `AXES`."""
        x_BTD = self.deberta(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        x_BD = self.dropout(x_BTD[:, 0])
        return torch.stack([head(x_BD) for head in self.heads], dim=1)


class CeladonScorer:
    """Toxicity scorer that runs Celadon on every window of 512 tokens and combines the scores.

    Args:
        name_or_path: Name on the Hub, or folder with config.json, model.safetensors and a tokenizer.
        device: Device of the model.
        batch_size: Number of windows per batch.

    Raises:
        InputError: If there is no such model, or it is incomplete.
    """

    def __init__(self, name_or_path: str, *, device: str = "cpu", batch_size: int = BATCH) -> None:
        self.name = f"celadon ({name_or_path})"
        self.device = device
        self.batch_size = batch_size
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            model, report = Celadon.from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"Cannot load a Celadon model in safetensors and its tokenizer from {name_or_path} "
                f"({str(error).splitlines()[0]}): use PleIAs/celadon, a folder with it, or lexicon."
            ) from None
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise InputError(f"{name_or_path} is not a Celadon model: {missing} is missing. Use PleIAs/celadon.")
        self.model = model.to(device).eval()

    @torch.inference_mode()
    def score(self, texts: list[str], languages: list[str]) -> list[Scores]:
        """Return the scores of each text; `languages` is unused, because Celadon is multilingual."""
        windows = [
            (document, ids) for document, text in enumerate(texts) for ids in self._windows(normalize(text).text)
        ]
        windows.sort(key=lambda window: len(window[1]))  # similar lengths in a batch need little padding
        scored: list[list[Scores]] = [[] for _ in texts]
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            padded = self.tokenizer.pad({"input_ids": [ids for _, ids in batch]}, return_tensors="pt").to(self.device)
            logits = self.model(padded["input_ids"], padded["attention_mask"])
            for (document, _), levels in zip(batch, logits.argmax(-1).tolist(), strict=True):
                scored[document].append(Scores(*levels))
        return [combine(window_scores) for window_scores in scored]

    def _windows(self, text: str) -> list[list[int]]:
        """Return the token ids of a text in windows, each with special tokens."""
        return self.tokenizer(text, truncation=True, max_length=WINDOW, return_overflowing_tokens=True)["input_ids"]
