"""What a task is: the table of tasks, what each predicts, how it is judged."""
