"""How much of a lung is ill, and where."""
