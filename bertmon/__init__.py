"""bertmon: train BERT under several settings and see early which run will never learn."""
