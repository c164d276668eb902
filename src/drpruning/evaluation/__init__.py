"""What a model can do: tasks of lm-eval, significance, speed and memory."""
