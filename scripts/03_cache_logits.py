"""Stage 03: let the teacher answer every row once.

Reads: <run>/data/, <run>/teacher/
Writes: <run>/logits/<fingerprint of the teacher>/

    python scripts/03_cache_logits.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["cache-logits", *sys.argv[1:]])
