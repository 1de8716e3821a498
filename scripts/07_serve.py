"""Stage 07: serve bundles over HTTP.

Reads: <run>/bundles/<name>/
Writes: nothing

    python scripts/07_serve.py --bundle runs/demo/bundles/base
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
