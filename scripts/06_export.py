"""Stage 06: write each student's best seed as a self-contained bundle.

Reads: <run>/data/, <run>/students/, <run>/report/
Writes: <run>/bundles/<name>/

    python scripts/06_export.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
