"""From labelled text, wherever it lies, to splits in Parquet with row keys."""
