"""What a run may be told: settings, their checks, where a value comes from, recipes."""
