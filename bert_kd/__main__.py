"""`python -m bert_kd`, the same as `bert-kd`."""

from bert_kd.cli import main

if __name__ == "__main__":
    main()
