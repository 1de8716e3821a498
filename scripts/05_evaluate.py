"""Stage 05: measure teacher, students and twins.

Reads: <run>/data/, <run>/teacher/, <run>/logits/, <run>/students/
Writes: <run>/report/

    python scripts/05_evaluate.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
