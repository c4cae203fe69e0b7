"""From losses to an update: optimizers, what each task counts, conflicts between tasks' gradients."""
