"""A BERT whose head reads the mean of the tokens, not the first one.

Sentence encoders such as all-MiniLM-L6-v2 are trained with this pooling: the state of their first
token and their pooler were never asked for anything.
"""

from __future__ import annotations

from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput


# transformers leaves the making of subclasses untyped.
class MeanPooledBert(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    """`BertForSequenceClassification` without a pooler: mean of the last hidden states over the
    real tokens, special ones included (Reimers and Gurevych 2019, section 3), dropout, head.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert.pooler = None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return the logits [batch, classes] of token ids [batch, length]."""
        output = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        hidden = output.last_hidden_state  # [batch, length, hidden]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [batch, length, 1]
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # [batch, hidden]
        # Where those who cache features look for what the head reads.
        output.pooler_output = mean
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean)))
