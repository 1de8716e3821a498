"""Starting a student from another one: from one that was distilled on general text, or on another
task.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from bert_kd.errors import StudentError
from bert_kd.student.model import BiLSTM, Student


@torch.no_grad()
def start_from(model: BiLSTM, tokenizer: Tokenizer, source: Student) -> int:
    """Take over the LSTM of `source` and the vectors of the entries that both vocabularies have;
    return how many these are.

    Pooling's attention and the mark of pairs are taken over where both have them; dense and output
    layer are the task's own. Raises StudentError where the sizes differ.
    """
    mine, theirs = model.shape, source.shape
    for key, name in (
        ("embedding.size", "embedding"),
        ("model.hidden_size", "hidden"),
        ("model.layers", "layers"),
    ):
        wanted, found = getattr(mine, name), getattr(theirs, name)
        if wanted != found:
            raise StudentError(
                f"{key} is {wanted}, but {found} in {source.name}, which the student starts from: "
                f"set it to {found}, or start from another one"
            )
    known = source.tokenizer.get_vocab()
    shared = [(row, known[entry]) for entry, row in tokenizer.get_vocab().items() if entry in known]
    if not shared:
        raise StudentError(
            f"{source.name}, which the student starts from, has no entry of its vocabulary: both "
            "need the same vocabulary.kind"
        )
    rows, places = torch.tensor(sorted(shared)).T
    model.embedding.weight[rows] = source.model.embedding.weight[places]
    model.layers.load_state_dict(source.model.layers.state_dict())
    if model.attention is not None and source.model.attention is not None:
        model.attention.load_state_dict(source.model.attention.state_dict())
    if model.match is not None and source.model.match is not None:
        model.match.copy_(source.model.match)
    return len(shared)
