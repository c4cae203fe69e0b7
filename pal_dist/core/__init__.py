"""What every other folder may use: errors, exit codes, whole-or-not-at-all files, words for the terminal, units."""
