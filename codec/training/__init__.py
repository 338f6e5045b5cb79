"""Learning a pyramid from photographs, and measuring the integer prior that files are coded with."""
