"""Published and own files, questions, token windows, pairs and batches."""
