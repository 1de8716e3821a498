"""Stage 04: train all students, and their twins without a teacher, from the cache.

Reads: <run>/data/, <run>/logits/, vectors and vocabulary of <run>/teacher/
Writes: <run>/students/<name>/

    python scripts/04_train_students.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["train-students", *sys.argv[1:]])
