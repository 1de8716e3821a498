"""Stage 01: labelled text to Parquet splits with row keys.

Reads: the source named in the config's [data]
Writes: <run>/data/

    python scripts/01_prepare_data.py --config scripts/configs/demo.toml
"""

import sys

from bert_kd.cli import main

if __name__ == "__main__":
    main(["prepare-data", *sys.argv[1:]])
