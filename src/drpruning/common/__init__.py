"""What every room may use: errors, files, the console; imports nothing of the package."""
