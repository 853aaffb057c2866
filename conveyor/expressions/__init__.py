"""CEL: expressions of pipelines, checked when a pipeline is registered and evaluated when a step is judged."""
