"""Training, evaluation and the recipes: one YAML is one row of a paper's table."""
