"""From an experiment to its record: data, tokens, codebooks, classifiers, the training, and sampled images."""
