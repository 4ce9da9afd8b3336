"""What every trigger of a process shares, whatever it waits for."""
