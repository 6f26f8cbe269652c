"""From a YAML file and key=value arguments to a checked experiment and its identity."""
