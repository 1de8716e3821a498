"""Stage 02: fine-tune the last layers of a BERT.

Reads: <run>/data/, the model named in [teacher]
Writes: <run>/teacher/

    python scripts/02_train_teacher.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["train-teacher", *sys.argv[1:]])
