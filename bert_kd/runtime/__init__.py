"""From a trained student to answers: export, load, predict. Only `export` needs torch."""
